"""What each step of a ladder changed: a variant against the one that it builds on, paired by seed.

`statistics.compare` asks what differs from the base; this asks which step did it. The steps are a family of
comparisons of their own, and Holm's correction is over them.
"""

from __future__ import annotations

import pandas as pd

from .frame import Meta
from .intervals import holm, verdicts
from .statistics import differences, scores


def steps(runs: pd.DataFrame, meta: Meta) -> pd.DataFrame:
    """One row per variant besides the base, in declared order.

    Columns: `variant`; `on`, what it builds on; `rung`, whether it belongs to the ladder, the longest row of variants
    from the base in which each builds on the one before; `mean` and `mean_on` over all their seeds; `pairs`,
    `difference`, `low`, `high`, `p`, `p_holm` and `verdict` of the step, as in `statistics.compare`.
    """
    on = runs.drop_duplicates("variant").set_index("variant")["on"].replace("", meta.base)
    on = on.drop(meta.base, errors="ignore")
    of = scores(runs, meta)
    means = of.values.mean(axis=1)
    table = differences(of, list(on.items())).assign(variant=on.index, on=on.to_numpy())  # type: ignore[arg-type]
    table = table.assign(mean=table["variant"].map(means), mean_on=table["on"].map(means))
    table["rung"] = table["variant"].isin(_longest(meta.base, dict(zip(table["variant"], table["on"], strict=True))))
    table["p_holm"] = holm(table["p"].to_numpy(float))
    table["verdict"] = verdicts(table, sign=meta.metric.sign)
    names = ["variant", "on", "rung", "mean", "mean_on", "pairs", "difference", "low", "high", "p", "p_holm", "verdict"]
    return table[names]


def _longest(base: str, parents: dict[str, str]) -> list[str]:
    best: list[str] = []
    for end in parents:
        road = [end]
        while road[-1] in parents and len(road) <= len(parents):
            road.append(parents[road[-1]])
        if road[-1] == base and len(road) > len(best) + 1:
            best = road[:-1]
    return best
