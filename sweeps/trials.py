"""The trials of a search as its folder and its runs' folders tell: rows of `trials.jsonl`, and a study of Optuna.

`searches/NAME@SETTING/` in the folder of the runs holds `search.json` (what is searched) and `trials.jsonl`, to which
rows are only added. A row is a proposal: the run's hash, its parameters and costs. A later row of the same trial adds
to it, e.g. that the trial was stopped early. A trial's top-1 is that of its validation images in the last epoch, of
the weights that its recipe reports: test images have no part in a search.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metamixer import jsonl
from metamixer.config import ConfigError
from metamixer.training.folder import RunFolder

if TYPE_CHECKING:
    import optuna

FILE = "trials.jsonl"
COSTS = ("macs", "params", "latency")
ENDED = ("done", "stopped", "failed")  # outcomes of trials that count; "too costly" ones are never trained
OPEN = "open"  # neither ended nor too costly


def search_folder(root: Path, label: str) -> Path:
    return root / "searches" / label


def find_search(root: Path, name: str | None = None, data: str | None = None) -> Path:
    """The folder of a search; of the only one there is without name and data.

    Raises:
        ConfigError: no such search, or several; the line says which there are.
    """
    there = sorted(path.parent for path in (root / "searches").glob("*/search.json"))
    chosen = [each for each in there if name in (None, each.name.partition("@")[0])]
    chosen = [each for each in chosen if data in (None, each.name.partition("@")[2])]
    if len(chosen) == 1:
        return chosen[0]
    listed = ", ".join(each.name for each in chosen or there) or "none"
    if chosen:
        raise ConfigError(f"several searches in {root}: {listed}; give name and data of one")
    raise ConfigError(f"no search {name or ''}{f' on {data}' if data else ''} in {root}; there: {listed}")


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """The rows of a search's trials by number, each with what later rows add to it."""
    trials = dict[int, dict[str, Any]]()
    for row in jsonl.read(folder / FILE):
        trials.setdefault(row["trial"], {}).update(row)
    return [trials[number] for number in sorted(trials)]


def trials_with_ends(root: Path, folder: Path) -> list[dict[str, Any]]:
    """The rows of a search's trials, each with how it stands: `outcome`, `curve`, `seconds`, `error` (see `ended`)."""
    return [{**row, **ended(root, row)} for row in read_trials(folder)]


def launched(root: Path, name: str = "*", data: str | None = None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, setting and row of every trial that was launched, of the searches of a name or of all."""
    for path in sorted((root / "searches").glob(f"{name}@{data or '*'}/{FILE}")):
        search, _, setting = path.parent.name.partition("@")
        rows = [row for row in read_trials(path.parent) if "ended" not in row and not too_costly(row)]
        yield from ((search, setting, row) for row in rows)


def too_costly(row: dict[str, Any]) -> list[str]:
    """The costs of a trial that are above their limits."""
    return [name for name, excess in row["excess"].items() if excess > 0]


def top1(row: dict[str, Any]) -> float:
    """Validation score in a row of metrics, of the weights that the recipe reports: the average where there is one."""
    first = next(key for key in row if key.startswith("val_"))  # the metric that decides
    return float(row.get(f"{first}_ema", row[first]))


def ended(root: Path, row: dict[str, Any]) -> dict[str, Any]:
    """How a trial stands: outcome, top-1 by epoch, seconds and error. A shipped row holds that already."""
    if "ended" in row:
        return {**row["ended"], "curve": {int(epoch): value for epoch, value in row["ended"]["curve"].items()}}
    folder = RunFolder(root / row["hash"])
    result = folder.result() or {}
    curve = {each["epoch"]: top1(each) for each in jsonl.read(folder.path / "metrics.jsonl")}
    found = {"outcome": OPEN, "curve": curve, "seconds": result.get("seconds"), "error": ""}
    if too_costly(row):
        return {**found, "outcome": "too costly"}
    if result.get("state") == "failed":
        return {**found, "outcome": "stopped" if "stopped" in row else "failed", "error": result["error"]}
    if result.get("state") == "done":
        if result["epochs"] in curve:
            return {**found, "outcome": "done"}
        return {**found, "outcome": "failed", "error": "metrics.jsonl has no row of the last epoch"}
    return found


def make_study(
    root: Path, folder: Path, about: dict[str, Any], sampler: optuna.samplers.BaseSampler | None = None
) -> optuna.Study:
    """A search as a study of Optuna in memory.

    Its attributes are those of `search.json` (name, setting, question, objectives, constraints); those of a trial are
    outcome, hash, source (sampler, or the name of a known configuration), costs, epochs, minutes and error. A trial
    that is too costly, failed or was stopped is pruned in Optuna's words, and infeasible unless it was stopped.

    Args:
        about: the content of `search.json`.
    """
    import optuna
    from optuna.distributions import json_to_distribution
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every study
    objectives = about["objectives"]
    better = optuna.study.StudyDirection
    directions = [better.MAXIMIZE if name == "top1" else better.MINIMIZE for name in objectives]
    study = optuna.create_study(study_name=folder.name, directions=directions, sampler=sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(objectives)
    for key in ("name", "setting", "question", "objectives", "constraints"):
        study.set_user_attr(key, about[key])
    for row in trials_with_ends(root, folder):
        outcome, curve = row["outcome"], row["curve"]
        last = curve.get(max(curve, default=0))
        state = {"done": TrialState.COMPLETE, OPEN: TrialState.RUNNING}.get(outcome, TrialState.PRUNED)
        study.add_trial(
            create_trial(
                state=state,
                values=[last if name == "top1" else row["costs"][name] for name in objectives]
                if outcome == "done"
                else None,
                params=row["parameters"],
                distributions={name: json_to_distribution(text) for name, text in row["distributions"].items()},
                intermediate_values=curve if len(objectives) == 1 else None,
                constraints={**row["excess"], **({"failed": 1.0} if outcome == "failed" else {})},
                user_attrs={
                    **{"outcome": outcome, "hash": row["hash"], "source": row["source"], "top1": last},
                    **row["costs"],
                    **{"epochs": max(curve, default=0), "error": row["error"]},
                    **({"minutes": row["seconds"] / 60} if row["seconds"] is not None else {}),
                },
            )
        )
    return study


def best_trials(study: optuna.Study, top: int | None = None) -> list[optuna.trial.FrozenTrial]:
    """The front, or where accuracy alone is sought every trial that is done; the most accurate first."""
    from optuna.trial import TrialState

    alone = len(study.directions) == 1
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if alone else study.best_trials
    return sorted(done, key=lambda trial: -trial.values[0])[:top]
