"""How runs are planned, launched and followed."""

from .grid import Grid, PlannedRun, Variant, grid_questions, load_grid
from .plan import Plan, State, make_plan

__all__ = ["Grid", "Plan", "PlannedRun", "State", "Variant", "grid_questions", "load_grid", "make_plan"]
