"""What a search found: its trials as Optuna's study, the front as a table and a picture, and what mattered.

A trial's score is that of its validation samples: the test samples have no part in a search. Everything of
`optuna.visualization.matplotlib` draws the study too.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.search_space import intersection_search_space
from optuna.trial import FrozenTrial, TrialState
from rich.markup import escape
from rich.table import Table

from sweeps.trials import best_trials, find_search, make_study, read_about, read_trials

from .plots.theme import BASE, INK, PALE, VARIANT, new, nothing
from .tables import count

ENOUGH = 8  # trials, for importances to mean anything
ROWS = 20


def load_study(
    root: str | Path, name: str | None = None, data: str | None = None, *, missing: str = "raise"
) -> optuna.Study:
    """The trials of a search, in the order in which they were proposed; see `sweeps.trials.make_study`.

    Args:
        root: the folder of the runs.
        name: the search; the only one there is if None.
        data: the key of its bases; the only one it has if None.
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
    return make_study(empty | read_about(folder), read_trials(Path(root), folder))


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """One row per trial: `number`, attributes (outcome, score, costs, epochs, hash, …) and `params_…`."""
    frame = study.trials_dataframe(attrs=("number", "user_attrs", "params"))
    return frame.rename(columns=lambda column: column.removeprefix("user_attrs_"))


def render_trials(study: optuna.Study, rows: int = ROWS) -> Table:
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
    for trial in best_trials(study, rows):
        cells = [f"{trial.values[0]:.{metric['decimals']}f}", *(_cost(name, trial.user_attrs[name]) for name in costs)]
        source = trial.user_attrs["source"]
        words = (f"{short(name)} {f'{v:.3g}' if isinstance(v, float) else v}" for name, v in trial.params.items())
        what = (f"{source}: " if source != "sampler" else "") + ", ".join(words)
        table.add_row(str(trial.number), *cells, escape(what))
    return table


def _cost(name: str, value: float) -> str:
    return f"{value:.2f} × base" if name.startswith("latency") else count(value)


def short(parameter: str) -> str:
    """A parameter's name without the parts that many of a search's names begin with."""
    for part in ("model.", "stages.*.", "token_mixer.", "recipe."):
        parameter = parameter.replace(part, "")
    return parameter


def importances(study: optuna.Study, objective: str | None = None) -> pd.DataFrame:
    """How much of an objective's variance over the done trials each parameter explains (fANOVA, Hutter et al. 2014).

    Columns `parameter`, `objective`, `importance` (a share; those of the unconditional parameters add up to 1),
    `trials` (how many have it) and `conditional`: of a parameter that only some trials have, the share is that within
    those, and not to be compared with the others. Empty below 8 done trials.

    Args:
        objective: the metric's name or a cost that was sought; the metric if None.

    Raises:
        ValueError: it was not sought.
    """
    objectives = study.user_attrs["objectives"]
    objective = objective or objectives[0]
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
    """The score on validation samples against the first cost that was sought, or multiply-adds; one point per trial.

    The line is the front. Trials that are far worse than all others are drawn at the edge, as triangles.
    """
    axes = axes or new()[1]
    about, metric = study.user_attrs, study.user_attrs["metric"]
    cost = [*about["objectives"][1:], "macs"][0]
    done = [trial.user_attrs for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    axes.set_title(f"{about['name']} on {about['setting']}: {len(done)} trials done")
    axes.set_ylabel(f"validation {metric['label']} ({metric['unit']})")
    if not done:
        return nothing(axes, "no trial is done yet")
    points = pd.DataFrame(done).rename(columns={metric["name"]: "score", cost: "cost"})
    axes.set_xlabel("latency, times the base's" if cost.startswith("latency") else f"{cost} per image")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    sign = 1 if metric["higher_is_better"] else -1
    good = sign * points["score"]
    lower, upper = good.quantile([0.25, 0.75])
    far = good < lower - 3 * (upper - lower)  # Tukey's fence: beyond it, one trial would squeeze the others
    axes.scatter(points["cost"][~far], points["score"][~far], color=PALE, edgecolor=VARIANT, label="trial")
    if far.any():
        edge = [sign * good[~far].min()] * far.sum()
        words = f"far worse, to {sign * good.min():.{metric['decimals']}f}"
        axes.scatter(points["cost"][far], edge, color=PALE, edgecolor=VARIANT, marker="v", label=words)
    if len(about["objectives"]) > 1:
        front = sorted((trial.values[1], trial.values[0]) for trial in study.best_trials)
        axes.step(*zip(*front, strict=True), where="post", color=VARIANT, marker="o", label="front")
    for known in points[(points["source"] != "sampler") & ~far].to_dict("records"):
        axes.scatter(known["cost"], known["score"], color=BASE, marker="D", zorder=4)
        at = known["cost"], known["score"]
        axes.annotate(known["source"], at, (6, -11), textcoords="offset points", fontsize=8, color=BASE)
    if limit := about["constraints"].get(cost):
        axes.axvline(limit, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="limit")
    axes.legend()
    return axes


def importances_picture(shares: pd.DataFrame, axes: Axes | None = None) -> Axes:
    """What fANOVA says, one bar per parameter; hollow ones are measured among the trials that have the parameter."""
    axes = axes or new(height=1.6 + 0.3 * max(len(shares), 4))[1]
    if not len(shares):
        return nothing(axes, f"fewer than {ENOUGH} trials are done")
    axes.set_title(f"what explains {shares['objective'].iloc[0]} (fANOVA)")
    rows = shares[::-1]
    names = rows["parameter"].map(short) + rows["trials"].map(" ({})".format).where(rows["conditional"], "")
    fills = rows["conditional"].map({True: "white", False: VARIANT})
    axes.barh(names, rows["importance"], color=fills, edgecolor=VARIANT)
    axes.set_xlabel("share of the variance over the done trials;\nof hollow bars over those in brackets")
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
