"""How runs are planned, launched and followed."""

from __future__ import annotations

from .grid import Grid, PlannedRun, Variant
from .plan import Plan, make_plan
from .questions import grid_questions, load_grid
from .states import State
