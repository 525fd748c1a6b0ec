"""Learning rates tried alike by all variants: which runs a comparison takes.

Each variant has the rate of its set whose runs scored best on the validation split, mean over seeds; never on the test
split. A rate at which more runs came through is preferred to one at which fewer did, and of equal ones the recipe's.
"""

from __future__ import annotations

import pandas as pd

from .folders import VALIDATION
from .frame import Meta


def tried(runs: pd.DataFrame) -> bool:
    """Whether runs were made at a set of learning rates."""
    return not bool(runs["fixed"].all())


def at_best(runs: pd.DataFrame, meta: Meta) -> pd.DataFrame:
    """The runs of each variant at its best rate; all of them where no rates were tried."""
    if not tried(runs):
        return runs
    figures = validation(runs)
    figures["mean"] *= meta.metric.sign
    figures = figures.sort_values(["count", "mean", "fixed"], ascending=False, kind="stable")
    best = figures.drop_duplicates("variant").set_index("variant")["lr"]
    return runs[runs["lr"] == runs["variant"].map(best)]


def validation(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per variant and learning rate: `mean` over seeds on the validation split, `count` of them, `fixed`."""
    found = runs.groupby(["variant", "lr"], sort=False)
    return found.agg(mean=(VALIDATION, "mean"), count=(VALIDATION, "count"), fixed=("fixed", "any")).reset_index()


def notes(runs: pd.DataFrame, variant: str, lr: float) -> list[str]:
    """What a reader must know of a variant's best rate: that it lies at the edge of its set, or that runs are open."""
    own = runs[runs["variant"] == variant]
    rates = sorted(own["lr"].dropna().unique())
    found = []
    if len(rates) > 1 and lr in (rates[0], rates[-1]):
        where = "lowest" if lr == rates[0] else "highest"
        found.append(f"its best learning rate {lr:g} is the {where} of its set: try beyond")
    if open_runs := int((~own["state"].isin(["done", "failed"])).sum()):
        found.append(f"{open_runs} runs of its set of learning rates have no result yet")
    return found
