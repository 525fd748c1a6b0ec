"""The trials of a search, as its folder and its runs' folders tell.

`searches/NAME@DATA/` in the folder of the runs holds `search.json` (what is sought) and `trials.jsonl`. A row of that
file is a proposal: the run's hash, its parameters and costs. A trial's score is its task's first metric on the
validation samples in the last epoch, with the weights that its recipe reports.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metamixer import jsonl
from metamixer.config import ConfigError
from metamixer.training.folder import RunFolder

if TYPE_CHECKING:
    import optuna

FILE = "trials.jsonl"
OPEN = "open"  # outcome of a trial that waits, runs or was interrupted


def find_search(root: Path, name: str, data: str | None = None) -> Path:
    """The folder of a search.

    Raises ConfigError: no such search, or it is there on several data; the line says which there are.
    """
    there = [path.parent for path in sorted((root / "searches").glob("*/search.json"))]
    chosen = [path for path in there if path.match(f"{name}@{data or '*'}")]
    if len(chosen) == 1:
        return chosen[0]
    what = "several searches" if chosen else "no search"
    listed = ", ".join(path.name for path in chosen or there) or "none"
    raise ConfigError(f"{what} {name}{f' on {data}' if data else ''} in {root}; there are {listed}")


def launched(root: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, data and row of every trial of every search that was launched here."""
    for path in sorted((root / "searches").glob(f"*/{FILE}")):
        search, _, data = path.parent.name.partition("@")
        yield from ((search, data, row) for row in jsonl.read(path) if "ended" not in row)


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """The rows of a search's trials, each with how it ended under `ended`.

    That is `outcome` (done, failed, open), the score by the metric's name, epochs, minutes and error. A shipped row
    holds it already; in older ones a trial may have been too costly.
    """
    metric = _about(folder)["metric"]["name"]
    return [
        row if "ended" in row else row | {"ended": _ended(RunFolder(folder.parent.parent / row["hash"]), metric)}
        for row in jsonl.read(folder / FILE)
    ]


def _about(folder: Path) -> dict[str, Any]:
    about = RunFolder(folder).read("search.json")
    if about is None:
        raise ConfigError(f"{folder / 'search.json'}: no whole record of a search")
    return about


def _ended(folder: RunFolder, metric: str) -> dict[str, Any]:
    result = folder.result() or {}
    last = (jsonl.read(folder.path / "metrics.jsonl") or [{}])[-1]
    outcome, error = result.get("state", OPEN), result.get("error", "")
    if outcome == "done" and last.get("epoch") != result["epochs"]:
        outcome, error = "failed", "metrics.jsonl has no row of the last epoch"
    return {
        "outcome": outcome,
        metric: last.get(f"val_{metric}_ema", last.get(f"val_{metric}")),
        "epochs": last.get("epoch", 0),
        "minutes": result["seconds"] / 60 if "seconds" in result else None,
        "error": error,
    }


def study_of(folder: Path, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    """A search as a study of Optuna in memory.

    Its attributes are those of `search.json` (name, setting, question, metric, objectives, constraints). Those of a
    trial are its hash, its source (sampler, or the name of a known configuration), its costs and how it ended. A trial
    that failed is pruned in Optuna's words, and infeasible.
    """
    import optuna
    from optuna.distributions import json_to_distribution
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every study
    about = _about(folder)
    better = optuna.study.StudyDirection
    first = better.MAXIMIZE if about["metric"]["higher_is_better"] else better.MINIMIZE
    directions = [first, *(better.MINIMIZE for _ in about["objectives"][1:])]
    study = optuna.create_study(study_name=folder.name, directions=directions, sampler=sampler)
    for key, value in about.items():
        study.set_user_attr(key, value)
    states = {"done": TrialState.COMPLETE, OPEN: TrialState.RUNNING}
    for row in read_trials(folder):
        outcome, found = row["ended"]["outcome"], row["ended"] | row["costs"]
        study.add_trial(
            create_trial(
                state=states.get(outcome, TrialState.PRUNED),
                values=[found[name] for name in about["objectives"]] if outcome == "done" else None,
                params=row["parameters"],
                distributions={key: json_to_distribution(text) for key, text in row["distributions"].items()},
                constraints={} if outcome in states else {outcome: 1.0},
                user_attrs={"hash": row["hash"], "source": row["source"], **found},
            )
        )
    return study


def best_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The front, or every trial that is done if no cost is sought; the best by the metric first."""
    from optuna.trial import TrialState

    alone = len(study.directions) == 1
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if alone else study.best_trials
    return sorted(done, key=lambda trial: trial.values[0], reverse=study.user_attrs["metric"]["higher_is_better"])
