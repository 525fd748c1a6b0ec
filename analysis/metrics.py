"""The metric that a grid declared, and those of the other columns of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from metamixer.metric import Metric

VALIDATION = "validation"  # the column of the deciding metric on the validation split

_KNOWN = {
    "top1": Metric("top1", "top-1", "%"),
    "top5": Metric("top5", "top-5", "%"),
    "loss": Metric("loss", "test loss", higher_is_better=False, decimals=4),
}


def of_column(metric: Metric, column: str) -> Metric:
    """The metric of another column of the same runs."""
    words = {
        metric.name: metric.label,
        VALIDATION: f"validation {metric.label}",
        f"{metric.name}_raw": f"{metric.label} (raw weights)",
        f"{metric.name}_ema": f"{metric.label} (EMA weights)",
    }
    return replace(metric, name=column, label=words[column]) if column in words else _named(column)


def declared(manifest: Mapping[str, Any]) -> Metric:
    """The metric that a grid's manifest declares; older ones have a name alone, and a task's levels apart."""
    found = manifest.get("metric") or "top1"
    if isinstance(found, str):
        return replace(_named(found), **manifest.get("levels", {}))
    known = {key.name for key in fields(Metric)}
    return Metric(**{key: value for key, value in found.items() if key in known})


def _named(name: str) -> Metric:
    return _KNOWN.get(name, Metric(name, name, decimals=3))
