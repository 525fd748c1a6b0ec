"""What a search found: its trials as Optuna's study, the front as a table and a picture, and what mattered.

A trial's score is that of its validation samples: the test samples have no part in a search. Everything of
`optuna.visualization.matplotlib` draws the study too.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import optuna
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import TrialState
from optuna.visualization.matplotlib import plot_param_importances
from rich.markup import escape
from rich.table import Table

from metamixer.metric import readable
from sweeps.trials import best_trials, find_search, study_of

from .plots.theme import BASE, COSTS, INK, PALE, VARIANT, new, nothing

ENOUGH = 8  # trials, for importances to mean anything
ROWS = 20


def load_study(
    root: str | Path, name: str | None = None, data: str | None = None, *, missing: str = "raise"
) -> optuna.Study:
    """The trials of a search, in the order in which they were proposed; see `sweeps.trials.study_of`.

    Args:
        root: the folder of the runs.
        name: the search; the only one there is if None.
        data: the key of its bases; the only one it has if None.
        missing: "empty" gives a study without trials where there is no such search.

    Raises ValueError: no such search, or several; the line says which there are.
    """
    try:
        return study_of(find_search(Path(root), name, data))
    except ValueError:
        if missing != "empty":
            raise
        return study_of(Path(f"{name}@{data}"))


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """One row per trial: `number`, attributes (outcome, score, costs, epochs, hash, …) and `params_…`."""
    frame = study.trials_dataframe(attrs=("number", "user_attrs", "params"))
    return frame.rename(columns=lambda column: column.removeprefix("user_attrs_"))


def render_trials(study: optuna.Study) -> Table:
    """The best trials as a table for the terminal, with their parameters."""
    about, metric = study.user_attrs, study.user_attrs["metric"]
    counts = Counter(trial.user_attrs["outcome"] for trial in study.trials)
    table = Table(
        title=f"{about['name']} on {about['setting']}: {'the best' if len(study.directions) == 1 else 'the front'}",
        caption=f"{counts.total()} trials: {', '.join(f'{number} {name}' for name, number in counts.items())}. "
        f"{metric['label']} is on validation samples, one seed, the best of many: `launch.py confirm` writes a grid "
        "that confirms it",
        box=None,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    costs = list(dict.fromkeys([*about["objectives"][1:], *about["constraints"]]))
    for heading in ("trial", f"{metric['label']} {metric['unit']}", *costs):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what")
    for trial in best_trials(study, ROWS):
        found = trial.user_attrs
        cells = [f"{found[name]:.2f} × base" if name.startswith("latency") else readable(found[name]) for name in costs]
        words = (f"{name} {f'{v:.3g}' if isinstance(v, float) else v}" for name, v in trial.params.items())
        source = "" if found["source"] == "sampler" else f"{found['source']}: "
        score = f"{trial.values[0]:.{metric['decimals']}f}"
        table.add_row(str(trial.number), score, *cells, escape(source + ", ".join(words)))
    return table


def front_picture(study: optuna.Study) -> Axes:
    """The score on validation samples against the first cost that was sought, or multiply-adds; one point per trial.

    The line is the front. Trials that are far worse than all others lie outside.
    """
    axes, about, metric = new()[1], study.user_attrs, study.user_attrs["metric"]
    cost = [*about["objectives"][1:], "macs"][0]
    done = [trial.user_attrs for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    axes.set_title(f"search {about['name']} on {about['setting']}: {len(done)} trials done")
    axes.set_ylabel(f"validation {metric['label']} ({metric['unit']})")
    if not done:
        return nothing(axes, "no trial is done yet")
    points = pd.DataFrame(done).rename(columns={metric["name"]: "score", cost: "cost"})
    known_costs = {"macs": COSTS["macs"], "params": COSTS["parameters"]}
    axes.set_xlabel(known_costs.get(cost, "latency, times the base's"))
    axes.xaxis.set_major_formatter(EngFormatter())
    sign = 1 if metric["higher_is_better"] else -1
    good = sign * points["score"]
    lower, upper = good.quantile([0.25, 0.75])
    points = points[good >= lower - 3 * (upper - lower)]  # beyond Tukey's fence one trial would squeeze the others
    left_out = f", {len(good) - len(points)} far worse are not shown" if len(points) < len(good) else ""
    axes.scatter(points["cost"], points["score"], color=PALE, edgecolor=VARIANT, label=f"trial{left_out}")
    if len(about["objectives"]) > 1:
        front = sorted((trial.values[1], trial.values[0]) for trial in study.best_trials)
        axes.step(*zip(*front, strict=True), where="post", color=VARIANT, marker="o", label="front")
    for known in points[points["source"] != "sampler"].to_dict("records"):
        at = known["cost"], known["score"]
        axes.scatter(*at, color=BASE, marker="D", zorder=4)
        axes.annotate(known["source"], at, (6, -11), textcoords="offset points", fontsize=8, color=BASE)
    if limit := about["constraints"].get(cost):
        axes.axvline(limit, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="limit")
    axes.legend()
    return axes


def importances_picture(study: optuna.Study) -> Axes:
    """How much of the metric's variance over the done trials each parameter explains (fANOVA, Hutter et al. 2014).

    It is Optuna's picture, of the parameters that every trial has.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < ENOUGH:
        return nothing(new(height=2)[1], f"fewer than {ENOUGH} trials are done")
    evaluator, name = FanovaImportanceEvaluator(seed=0), study.user_attrs["metric"]["label"]
    with warnings.catch_warnings(), plt.rc_context():  # it sets a style for all that follows
        warnings.simplefilter("ignore")
        return plot_param_importances(study, evaluator=evaluator, target=lambda each: each.values[0], target_name=name)


def export(study: optuna.Study, path: Path) -> None:
    """Write the study into a new SQLite file, which optuna-dashboard opens.

    Raises OSError: the file is there already, or can't be written.
    """
    path.open("x").close()
    to = optuna.create_study(storage=f"sqlite:///{path}", study_name=study.study_name, directions=study.directions)
    to.add_trials(study.trials)
    for name, value in study.user_attrs.items():
        to.set_user_attr(name, value)
