"""What a search found: its trials as Optuna's study, the front as a table and a picture, and what mattered.

A trial's top-1 is that of its validation images: the test images have no part in a search. Everything of
`optuna.visualization.matplotlib` draws the study too.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from matplotlib.axes import Axes
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.search_space import intersection_search_space
from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape
from rich.table import Table

from metamixer.training.folder import RunFolder
from sweeps.trials import COSTS, best_trials, find_search, make_study

from .frame import plural
from .plots.theme import BASE, INK, PALE, VARIANT, new, nothing
from .tables import count

UNITS = {"top1": "validation top-1 (%)", "macs": "multiply-adds per image", "params": "parameters", "latency": "ms"}
ENOUGH = 8  # trials, for importances to mean anything
ROWS = 20


def load_study(
    root: str | Path, name: str | None = None, data: str | None = None, *, missing: str = "raise"
) -> optuna.Study:
    """The trials of a search, in the order in which they were proposed; see `sweeps.trials.make_study`.

    Args:
        root: the folder of the runs.
        name: the search; the only one there is if None.
        data: its setting; the only one it has if None.
        missing: "empty" gives a study without trials where there is no such search.

    Raises:
        ValueError: no such search, or several; the line says which there are.
    """
    try:
        folder = find_search(Path(root), name, data)
    except ValueError:
        if missing != "empty":
            raise
        folder = Path(root) / "searches" / f"{name}@{data}"
    empty: dict[str, Any] = {"name": name, "setting": data, "question": "", "objectives": ["top1"], "constraints": {}}
    return make_study(Path(root), folder, RunFolder(folder).read("search.json") or empty)


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """One row per trial: `number`, attributes (outcome, top1, costs, epochs, hash, …) and `params_…`."""
    frame = study.trials_dataframe(attrs=("number", "user_attrs", "params"))
    return frame.rename(columns=lambda column: column.removeprefix("user_attrs_"))


def render_trials(study: optuna.Study, rows: int = ROWS) -> Table:
    """The best trials as a table for the terminal, with their parameters."""
    alone = len(study.directions) == 1
    about = study.user_attrs
    table = Table(
        title=f"{about['name']} on {about['setting']}: {'the best' if alone else 'the front'}",
        caption=f"{_counts(study)}. Top-1 is on validation images, one seed, the best of many: `launch.py confirm` "
        "writes a grid that confirms it",
        box=None,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    found = best_trials(study, rows)
    costs = [name for name in COSTS if any(name in trial.user_attrs for trial in found)]
    for heading in ("trial", "top-1 %", *costs):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what")
    for trial in found:
        own = trial.user_attrs
        cells = [f"{own[name]:.3g} ms" if name == "latency" else count(own.get(name)) for name in costs]
        table.add_row(str(trial.number), f"{own['top1']:.2f}", *cells, escape(describe_trial(trial)))
    return table


def _counts(study: optuna.Study) -> str:
    counts = Counter(trial.user_attrs["outcome"] for trial in study.trials)
    return f"{plural(len(study.trials), 'trial')}: {', '.join(f'{number} {name}' for name, number in counts.items())}"


def describe_trial(trial: FrozenTrial) -> str:
    """A trial's parameters in one line, after its name if it is a known configuration."""
    shown = {short(name): f"{v:.3g}" if isinstance(v, float) else v for name, v in trial.params.items()}
    source = trial.user_attrs["source"]
    return (f"{source}: " if source != "sampler" else "") + ", ".join(f"{name} {v}" for name, v in shown.items())


def short(parameter: str) -> str:
    """A parameter's name without what all of a search's names have in common."""
    name = parameter.removeprefix("model.").removeprefix("stages.*.")
    return name.replace("token_mixer.", "").replace("recipe.", "")


def importances(study: optuna.Study, objective: str = "top1") -> pd.DataFrame:
    """How much of an objective's variance over the done trials each parameter explains (fANOVA, Hutter et al. 2014).

    Columns `parameter`, `objective`, `importance` (a share; those of the unconditional parameters add up to 1),
    `trials` (how many have it) and `conditional`: of a parameter that only some trials have, the share is that within
    those, and not to be compared with the others. Empty below 8 done trials.

    Args:
        objective: "top1" or a cost that was sought.

    Raises:
        ValueError: it was not sought.
    """
    objectives = study.user_attrs["objectives"]
    if objective not in objectives:
        raise ValueError(f"{objective!r} was not sought; there are {', '.join(objectives)}")
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    number = objectives.index(objective)

    def shares(trials: list[FrozenTrial]) -> dict[str, float]:
        """Of the parameters that all these trials have and that vary among them."""
        if len(trials) < ENOUGH or len({trial.values[number] for trial in trials}) < 2:
            return {}
        shared = intersection_search_space(trials)
        varying = [name for name in shared if len({trial.params[name] for trial in trials}) > 1]
        evaluator = FanovaImportanceEvaluator(seed=0)
        return get_param_importances(study, evaluator=evaluator, params=varying, target=lambda t: t.values[number])

    rows = [(name, share, len(done), False) for name, share in shares(done).items()]
    for name in dict.fromkeys(name for trial in done for name in trial.params):
        having = [trial for trial in done if name in trial.params]
        if len(having) < len(done) and name in (found := shares(having)):
            rows.append((name, found[name], len(having), True))
    frame = pd.DataFrame(rows, columns=["parameter", "importance", "trials", "conditional"]).assign(objective=objective)
    return frame.sort_values(["conditional", "importance"], ascending=[True, False], ignore_index=True)


def front_picture(study: optuna.Study, axes: Axes | None = None) -> Axes:
    """Top-1 on validation images against the first cost that was sought, or multiply-adds; one point per trial.

    The line is the front. Marks at the foot are too costly trials, which were not trained, and those far below all
    others, which would otherwise squeeze the rest into a line.
    """
    axes = axes or new()[1]
    about, objectives = study.user_attrs, study.user_attrs["objectives"]
    cost = objectives[1] if len(objectives) > 1 else "macs"
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    axes.set_title(f"{about['name']} on {about['setting']}: {len(done)} trials done", loc="left", fontsize=10)
    axes.set_ylabel(UNITS["top1"])
    if not done:
        return nothing(axes, "no trial is done yet")
    points = pd.DataFrame([trial.user_attrs for trial in done])
    scale, letter = (1e6, " (M)") if cost != "latency" and points[cost].max() >= 1e6 else (1.0, "")
    axes.set_xlabel(UNITS[cost] + letter)
    low, high = _foot(points["top1"]), points["top1"].max()
    room = max(high - low, 0.5)
    far, near = points[points["top1"] < low], points[points["top1"] >= low]
    if len(far):
        words = f"below {low:.1f} %, down to {far['top1'].min():.1f}"
        foot = [low - 0.05 * room] * len(far)
        axes.scatter(far[cost] / scale, foot, color=PALE, edgecolor=VARIANT, marker="v", label=words, zorder=4)
    drawn = near[near["source"] == "sampler"]
    axes.scatter(drawn[cost] / scale, drawn["top1"], color=PALE, edgecolor=VARIANT, label="trial", zorder=2)
    if len(objectives) > 1:
        front = pd.DataFrame([trial.user_attrs for trial in study.best_trials]).sort_values(cost)
        axes.step(front[cost] / scale, front["top1"], where="post", color=VARIANT, marker="o", label="front", zorder=3)
    for known in near[near["source"] != "sampler"].to_dict("records"):
        at = (known[cost] / scale, known["top1"])
        axes.scatter(*at, color=BASE, marker="D", zorder=4)
        axes.annotate(known["source"], at, (6, -11), textcoords="offset points", fontsize=8, color=BASE)
    axes.set_ylim(low - 0.12 * room, high + 0.08 * room)
    costly = [trial.user_attrs for trial in study.trials if trial.user_attrs["outcome"] == "too costly"]
    if known_costs := [own[cost] / scale for own in costly if cost in own]:
        foot = [low - 0.1 * room] * len(known_costs)
        axes.scatter(known_costs, foot, color=INK, marker="|", label="too costly: not trained", zorder=2)
    if limit := about["constraints"].get(cost):
        axes.axvline(limit / scale, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="limit")
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8, loc="best")
    return axes


def _foot(top1: Any) -> float:
    """The lowest of the trials that are not far out, three times the middle half's range below it (Tukey's fence)."""
    lower, upper = np.percentile(top1, [25, 75])
    return float(top1[top1 >= lower - 3 * (upper - lower)].min())


def importances_picture(shares: pd.DataFrame, axes: Axes | None = None) -> Axes:
    """What fANOVA says, a bar a parameter; hollow ones are conditional, measured among the trials that have them."""
    axes = axes or new(height=1.6 + 0.3 * max(len(shares), 4))[1]
    if not len(shares):
        return nothing(axes, f"fewer than {ENOUGH} trials are done")
    what = UNITS[shares["objective"].iloc[0]].removesuffix(" (%)")
    axes.set_title(f"what explains {what} (fANOVA)", loc="left", fontsize=10)
    rows = shares[::-1]
    fills = ["white" if conditional else VARIANT for conditional in rows["conditional"]]
    names = [
        f"{short(row['parameter'])} ({row['trials']})" if row["conditional"] else short(row["parameter"])
        for row in rows.to_dict("records")
    ]
    axes.barh(names, rows["importance"], color=fills, edgecolor=VARIANT)
    label = "share of the variance over the done trials"
    axes.set_xlabel(label + (";\nof hollow bars over those in brackets" if rows["conditional"].any() else ""))
    return axes


def export(study: optuna.Study, path: Path) -> None:
    """Write the study into a new SQLite file, which optuna-dashboard opens.

    Raises:
        ValueError: the file is there already, or can't be written.
    """
    if path.exists():
        raise ValueError(f"{path}: there already; name another file, or remove it")
    try:
        to = optuna.create_study(storage=f"sqlite:///{path}", study_name=study.study_name, directions=study.directions)
    except Exception as error:  # whatever SQLAlchemy raises
        raise ValueError(f"{path}: cannot write here ({' '.join(str(error).split())})") from None
    to.add_trials(study.trials)
    for name, value in study.user_attrs.items():
        to.set_user_attr(name, value)
