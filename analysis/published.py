"""Published results on ImageNet-1K: context for what is measured here.

`published.csv` holds FFNet's table (arXiv 2406.02021; parameters counted again, folded) and some timm models of its
size, trained on ImageNet-1K alone: accuracy and parameters from timm's `results/results-imagenet.csv`, multiply-adds at
the same resolution from its `results/benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv`, or counted by
`launch.py cost NAME --size N` where that has none (column `counted`). One run each, so no spread over seeds.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from .frame import with_latency
from .latency import published as published_latencies

_TABLE = Path(__file__).parent / "published.csv"


def published_mixers() -> pd.DataFrame:
    """Top-1 on ImageNet of networks that differ in their token mixer alone (S12), or besides in little (S18)."""
    return pd.read_csv(_TABLE.with_name("published_mixers.csv"))


def published() -> pd.DataFrame:
    """One row per published result: `variant`, `top1` (%), `parameters`, `macs`, `resolution`, `distilled`, `source`.

    `variant` is the model's timm name. `distilled` says whether a teacher was used, which makes a comparison with other
    rows unequal. Published latencies are joined by name and resolution, in columns as `frame.load` names them.
    """
    table = pd.read_csv(_TABLE)
    table["network"] = table["variant"].str.split(".").str[0]
    return with_latency(table.astype({"resolution": "Int64"}), published_latencies())[0]
