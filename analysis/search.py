"""A search's trials as a frame, the front that they found as a table and a picture, and what mattered.

Reads the study (a journal file in the search's folder, or a database) with Optuna; writes nothing. A trial's top-1 is
that of its validation images: the test images have no part in a search.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.markup import escape
from rich.table import Table

from .plots._common import BASE as _BASE
from .plots._common import INK as _INK
from .plots._common import PALE as _PALE
from .plots._common import VARIANT as _VARIANT
from .tables import count, plural

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every study

COSTS = ("macs", "params", "latency")
COLUMNS = ("trial", "state", "top1", *COSTS, "epochs", "front", "source", "hash", "minutes", "error")
UNITS = {"top1": "validation top-1 (%)", "macs": "multiply-adds per image", "params": "parameters", "latency": "ms"}
PARAMETER = "param."  # in front of a parameter's name in a frame's columns
ENOUGH = 8  # trials, for importances to mean anything
ROWS = 20


def load_trials(
    root: str | Path, name: str | None = None, data: str | None = None, *, missing: str = "raise"
) -> pd.DataFrame:
    """The trials of a search, a row each, in the order in which they were proposed.

    Columns: `trial`, `state` (done, pruned, too costly, failed, lost, running, waiting), `top1` (%, on validation
    images; of a pruned trial its last), `macs`, `params`, `latency` (ms, where measured), `epochs`, `front` (whether no
    other beats it in all that was sought), `source` (sampler, the name of a known configuration, finished run),
    `hash` (the run's folder), `minutes`, `error`, and `param.…` for each parameter, missing where a trial has none.
    `frame.attrs` holds name, data, question, objectives, constraints, folder and the parameters' distributions.

    Args:
        root: the folder of the runs.
        name: the search; the only one there is if None.
        data: its setting; the only one it has if None.
        missing: "empty" gives an empty frame where there is no such search.

    Raises:
        ValueError: no such search, or several; the line says which there are.
    """
    found = [path for path in sorted((Path(root) / "searches").glob("*/search.json"))]
    labels = [path.parent.name for path in found]
    chosen = [
        path
        for path, label in zip(found, labels, strict=True)
        if name in (None, label.partition("@")[0]) and data in (None, label.partition("@")[2])
    ]
    if not chosen:
        if missing == "empty":
            return _frame([], ("top1",))
        there = f"there are {', '.join(labels)}" if labels else "none was begun there yet"
        raise ValueError(f"no search {name or ''}{f' on {data}' if data else ''} in {root}: {there}")
    if len(chosen) > 1:
        several = ", ".join(path.parent.name for path in chosen)
        raise ValueError(f"several searches in {root}: {several}; give name and data of one")
    folder = chosen[0].parent
    content = json.loads(chosen[0].read_text())
    definition = content["definition"]
    try:
        study = optuna.load_study(study_name=folder.name, storage=_storage(folder, content["storage"]))
    except json.JSONDecodeError:
        raise ValueError(f"{folder}: a line of the journal is torn; launch.py search mends it") from None
    frame = _frame(study.get_trials(deepcopy=False), tuple(definition["objectives"]))
    kept = {key: definition[key] for key in ("name", "question", "constraints")}
    frame.attrs |= {**kept, "data": definition["setting"], "folder": str(folder)}
    return frame


def _storage(folder: Path, storage: str) -> BaseStorage:
    if storage != "journal":
        return RDBStorage(storage)
    path = folder / "journal.log"
    if not path.exists():
        raise ValueError(f"{path} is missing: the search's trials are gone")
    return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))


def _frame(trials: Sequence[FrozenTrial], objectives: tuple[str, ...]) -> pd.DataFrame:
    rows = [_row(trial) for trial in trials]
    columns = [*COLUMNS, *dict.fromkeys(key for row in rows for key in row if key.startswith(PARAMETER))]
    frame = pd.DataFrame(rows, columns=columns)
    frame["front"] = _front(frame, objectives)
    ranges = {name: distribution_to_json(each) for trial in trials for name, each in trial.distributions.items()}
    frame.attrs = {"objectives": objectives, "distributions": ranges, "name": "", "data": "", "question": "",
                   "constraints": {}, "folder": ""}  # fmt: skip
    return frame


def _row(trial: FrozenTrial) -> dict[str, Any]:
    about = trial.user_attrs
    last = max(trial.intermediate_values, default=0)
    done = trial.state == TrialState.COMPLETE and trial.values
    seconds = trial.duration.total_seconds() if trial.duration is not None else np.nan
    return {
        "trial": trial.number,
        "state": _state(trial),
        "top1": trial.values[0] if done else trial.intermediate_values.get(last, np.nan),
        **{name: about.get(name, np.nan) for name in COSTS},
        "epochs": last if last else np.nan,
        "source": about.get("source", ""),
        "hash": about.get("hash", ""),
        "minutes": seconds / 60 if about.get("trained") and about.get("source") != "finished run" else np.nan,
        "error": about.get("error", ""),
        **{PARAMETER + key: "none" if value is None else value for key, value in trial.params.items()},
    }


def _state(trial: FrozenTrial) -> str:
    if trial.state == TrialState.PRUNED:
        trained = trial.user_attrs.get("trained")
        return ("failed" if trial.constraints.get("failed") else "pruned") if trained else "too costly"
    names = {"COMPLETE": "done", "FAIL": "lost", "RUNNING": "running", "WAITING": "waiting"}
    return names[trial.state.name]


def _front(frame: pd.DataFrame, objectives: tuple[str, ...]) -> list[bool]:
    """Done trials that no other one beats: at least as good in every objective and better in one."""
    signs = np.array([-1.0 if name == "top1" else 1.0 for name in objectives])
    values = frame[list(objectives)].astype(float).to_numpy() * signs
    done = (frame["state"] == "done").to_numpy()
    found = []
    for row, is_done in zip(values, done, strict=True):
        others = values[done]
        beaten = (others <= row).all(axis=1) & (others < row).any(axis=1)
        found.append(bool(is_done and not beaten.any()))
    return found


def best(trials: pd.DataFrame, rows: int = ROWS) -> pd.DataFrame:
    """The front, or where accuracy alone was sought the most accurate trials; the most accurate first."""
    alone = len(trials.attrs["objectives"]) == 1
    chosen = trials[trials["state"] == "done"] if alone else trials[trials["front"]]
    return chosen.sort_values("top1", ascending=False).head(rows)


def render_trials(trials: pd.DataFrame, rows: int = ROWS) -> Table:
    """The best trials as a table for the terminal, with what each consists of."""
    counts = ", ".join(f"{number} {state}" for state, number in trials["state"].value_counts().items())
    alone = len(trials.attrs["objectives"]) == 1
    table = Table(
        title=f"{trials.attrs['name']} on {trials.attrs['data']}: {'the best' if alone else 'the front'}",
        caption=f"{plural(len(trials), 'trial')}: {counts}. Top-1 is on validation images, one seed, the best of many: "
        "launch.py confirm writes a grid that confirms it",
        box=None,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    shown = [name for name in COSTS if trials[name].notna().any()]
    for heading in ("trial", "top-1 %", *shown):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what")
    for row in best(trials, rows).to_dict("records"):
        cells = [f"{row[name]:.3g} ms" if name == "latency" else count(row[name]) for name in shown]
        table.add_row(str(row["trial"]), f"{row['top1']:.2f}", *cells, escape(describe_trial(row)))
    return table


def describe_trial(row: Mapping[Any, Any]) -> str:
    """A trial's parameters in one line, and its name if it is a known configuration."""
    parts = []
    for key, value in row.items():
        if key.startswith(PARAMETER) and not (isinstance(value, float) and np.isnan(value)) and value is not None:
            shown = f"{value:.3g}" if isinstance(value, float) else str(value)
            parts.append(f"{short(key)} {shown}")
    known = f"{row['source']}: " if row.get("source") not in ("", "sampler", None) else ""
    return known + ", ".join(parts)


def short(parameter: str) -> str:
    """A parameter's name without what all of a search's names have in common."""
    name = parameter.removeprefix(PARAMETER).removeprefix("model.").removeprefix("stages.*.")
    return name.replace("token_mixer.", "").replace("recipe.", "")


def importances(trials: pd.DataFrame, objective: str = "top1") -> pd.DataFrame:
    """How much of an objective's variance over the done trials each parameter explains (fANOVA, Hutter et al. 2014).

    Columns `parameter`, `importance` (a share; those of the unconditional parameters add up to 1), `trials` (how many
    have it) and `conditional`: of a parameter that only some trials have, the share is that within those, and not to
    be compared with the others. Empty below 8 done trials.

    Args:
        objective: "top1" or a cost that was sought.
    """
    objectives = trials.attrs["objectives"]
    if objective not in objectives:
        raise ValueError(f"{objective!r} was not sought; there are {', '.join(objectives)}")
    done = trials[trials["state"] == "done"]
    having = {name: done[done[PARAMETER + name].notna()] for name in trials.attrs["distributions"]}
    rows: list[tuple[str, float, int, bool]] = []
    if len(done) >= ENOUGH:
        rows = [(name, share, len(done), False) for name, share in _fanova(done, objective).items()]
        for name, part in having.items():
            if ENOUGH <= len(part) < len(done):
                rows.append((name, _fanova(part, objective).get(name, np.nan), len(part), True))
    frame = pd.DataFrame(rows, columns=["parameter", "importance", "trials", "conditional"])
    frame = frame.dropna().sort_values(["conditional", "importance"], ascending=[True, False], ignore_index=True)
    frame.attrs = {"name": trials.attrs["name"], "data": trials.attrs["data"], "objective": objective}
    return frame


def _fanova(trials: pd.DataFrame, objective: str) -> dict[str, float]:
    """Shares of the parameters that all these trials have and that vary among them."""
    ranges = {name: _range(text) for name, text in trials.attrs["distributions"].items()}
    shared = {
        name: distribution
        for name, distribution in ranges.items()
        if trials[PARAMETER + name].notna().all() and trials[PARAMETER + name].nunique() > 1
    }
    if not shared or trials[objective].nunique() < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    for trial in trials.to_dict("records"):
        parameters = {name: _typed(trial[PARAMETER + name], each) for name, each in shared.items()}
        study.add_trial(create_trial(params=parameters, distributions=shared, value=float(trial[objective])))
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def _range(text: str) -> BaseDistribution:
    found = json_to_distribution(text)
    if isinstance(found, CategoricalDistribution):
        return CategoricalDistribution(["none" if choice is None else choice for choice in found.choices])
    return found


def _typed(value: Any, distribution: BaseDistribution) -> Any:
    """A column's value as its distribution knows it: pandas turns whole numbers into floats beside missing ones."""
    if isinstance(distribution, CategoricalDistribution):
        return next(choice for choice in distribution.choices if choice == value)
    return int(value) if isinstance(distribution, IntDistribution) else float(value)


def front_picture(trials: pd.DataFrame, axes: Axes | None = None) -> Axes:
    """Top-1 on validation images against the first cost that was sought, or multiply-adds; a point a trial.

    The line is the front. Marks at the foot are too costly trials, which were not trained, and those far below all
    others (a few that did not learn would else squeeze the rest into a line).
    """
    if axes is None:
        figure, axes = plt.subplots(figsize=(8, 5.4))
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    objectives = trials.attrs["objectives"]
    cost = objectives[1] if len(objectives) > 1 else "macs"
    done = trials[trials["state"] == "done"]
    scale, letter = (1e6, " (M)") if cost != "latency" and len(done) and done[cost].max() >= 1e6 else (1.0, "")
    axes.set_title(
        f"{trials.attrs['name']} on {trials.attrs['data']}: {len(done)} trials done", loc="left", fontsize=10
    )
    axes.set_xlabel(UNITS[cost] + letter)
    axes.set_ylabel(UNITS["top1"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    if not len(done):
        axes.text(0.5, 0.5, "no trial is done yet", transform=axes.transAxes, ha="center", color=_INK)
        return axes
    low, high = _foot(done["top1"].to_numpy()), done["top1"].max()
    room = max(high - low, 0.5)
    far = done[done["top1"] < low]
    if len(far):
        foot, words = np.full(len(far), low - 0.05 * room), f"below {low:.1f} %, down to {far['top1'].min():.1f}"
        axes.scatter(far[cost] / scale, foot, color=_PALE, edgecolor=_VARIANT, marker="v", label=words, zorder=4)
    drawn = done[(done["source"] == "sampler") & (done["top1"] >= low)]
    axes.scatter(drawn[cost] / scale, drawn["top1"], color=_PALE, edgecolor=_VARIANT, label="trial", zorder=2)
    front = done[done["front"]].sort_values(cost)
    if len(objectives) > 1:
        axes.step(front[cost] / scale, front["top1"], where="post", color=_VARIANT, marker="o", label="front", zorder=3)
    for known in done[(done["source"] != "sampler") & (done["top1"] >= low)].to_dict("records"):
        at = (known[cost] / scale, known["top1"])
        axes.scatter(*at, color=_BASE, marker="D", zorder=4)
        if known["source"] != "finished run":
            axes.annotate(known["source"], at, (6, -11), textcoords="offset points", fontsize=8, color=_BASE)
    axes.set_ylim(low - 0.12 * room, high + 0.08 * room)
    costly = trials[trials["state"] == "too costly"]
    if len(costly):
        foot = np.full(len(costly), low - 0.1 * room)
        axes.scatter(costly[cost] / scale, foot, color=_INK, marker="|", label="too costly: not trained", zorder=2)
    limit = trials.attrs["constraints"].get(cost)
    if limit:
        axes.axvline(limit / scale, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), label="limit")
    axes.legend(framealpha=0.9, edgecolor="none", fontsize=8, loc="best")
    return axes


def _foot(top1: np.ndarray) -> float:
    """The lowest of the trials that are not far out, three times the middle half's range below it (Tukey's fence)."""
    lower, upper = np.percentile(top1, [25, 75])
    return float(top1[top1 >= lower - 3 * (upper - lower)].min())


def importances_picture(shares: pd.DataFrame, axes: Axes | None = None) -> Axes:
    """What fANOVA says, a bar a parameter; hollow ones are conditional, measured among the trials that have them."""
    if axes is None:
        figure, axes = plt.subplots(figsize=(8, 1.6 + 0.3 * max(len(shares), 4)))
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    what = UNITS[shares.attrs["objective"]].removesuffix(" (%)")
    title = f"{shares.attrs['name']} on {shares.attrs['data']}: what explains {what} (fANOVA)"
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if not len(shares):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, f"fewer than {ENOUGH} trials are done", transform=axes.transAxes, ha="center", color=_INK)
        return axes
    rows = shares[::-1]
    fills = ["white" if conditional else _VARIANT for conditional in rows["conditional"]]
    axes.barh(range(len(rows)), rows["importance"], color=fills, edgecolor=_VARIANT)
    names = [
        f"{short(name)} ({trials})" if conditional else short(name)
        for name, trials, conditional in zip(rows["parameter"], rows["trials"], rows["conditional"], strict=True)
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    label = "share of the variance over the done trials"
    axes.set_xlabel(label + (";\nof hollow bars over those in brackets" if rows["conditional"].any() else ""))
    return axes


def conclusion(trials: pd.DataFrame, shares: pd.DataFrame) -> str:
    """What a search found, computed: a few sentences, one a line; with a single seed it names no winner."""
    done = trials[trials["state"] == "done"]
    if not len(done):
        return f"No conclusion for {trials.attrs['name'] or 'the search'}: no trial is done."
    counts = ", ".join(f"{number} {state}" for state, number in trials["state"].value_counts().items())
    lines = [f"{len(trials)} trials: {counts}."]
    found = best(trials, 3)
    for row in found.to_dict("records"):
        lines.append(f"Trial {row['trial']}: {row['top1']:.2f} % at {count(row['macs'])} MACs ({describe_trial(row)}).")
    known = done[~done["source"].isin(["sampler", "finished run"])]
    if len(known):
        ahead = int((done.loc[done["source"] == "sampler", "top1"] > known["top1"].max()).sum())
        lines.append(
            f"{plural(ahead, 'trial')} of the sampler above the best configuration that was known before"
            f" ({known['top1'].max():.2f} %)."
        )
    top = shares[~shares["conditional"]].head(2) if len(shares) else shares
    named = ", ".join(f"{short(row['parameter'])} {100 * row['importance']:.0f} %" for row in top.to_dict("records"))
    lines += [f"Most of the variance over the trials goes with {named} (fANOVA)."] if named else []
    far = int((done["top1"] < _foot(done["top1"].to_numpy())).sum())
    lines += (
        [f"{plural(far, 'trial')} far below all others, and these shares are largely theirs."] if far and named else []
    )
    lines.append("One seed on validation images, the best of many trials: `launch.py confirm` says what of it stays.")
    return "\n".join(lines)
