"""How runs are planned, launched and followed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .grid import Grid, PlannedRun, Variant, grid_questions, load_grid
    from .plan import Plan, make_plan
    from .search import Search
    from .space import Choice, Integer, Mixer, Real, Together
    from .states import State

__all__ = [
    "Choice",
    "Grid",
    "Integer",
    "Mixer",
    "Plan",
    "PlannedRun",
    "Real",
    "Search",
    "State",
    "Together",
    "Variant",
    "grid_questions",
    "load_grid",
    "make_plan",
]

_HOME = {
    **{"Plan": "plan", "make_plan": "plan", "State": "states", "Search": "search"},
    **dict.fromkeys(("Choice", "Integer", "Mixer", "Real", "Together"), "space"),
}  # of the others: grid


def __getattr__(name: str) -> Any:
    # the command line starts without torch, which most of these modules need
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME.get(name, 'grid')}", __name__), name)
