"""How runs are planned, launched and followed."""

from .grid import Grid, PlannedRun, Variant, grid_questions, load_grid
from .plan import Plan, make_plan
from .states import State

__all__ = ["Grid", "Plan", "PlannedRun", "State", "Variant", "grid_questions", "load_grid", "make_plan"]
