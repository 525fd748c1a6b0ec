"""The trials of a search, as its folder and its runs' folders tell.

`searches/NAME@SETTING/` in the folder of the runs holds `search.json` (what is sought) and `trials.jsonl`. A row of
that file is a proposal: the run's hash, its parameters, changes and costs. A trial's score is its task's first metric
on the validation samples in the last epoch, with the weights that its recipe reports: test samples have no part in a
search.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metamixer import jsonl
from metamixer.config import ConfigError
from metamixer.training.folder import RunFolder

if TYPE_CHECKING:
    import optuna

FILE = "trials.jsonl"
# the metric of a search of an older version, which does not name it
TOP1 = {"name": "top1", "label": "top-1", "unit": "%", "higher_is_better": True, "decimals": 2}
OPEN = "open"  # outcome of a trial that waits, runs or was interrupted


def find_search(root: Path, name: str | None = None, data: str | None = None) -> Path:
    """The folder of a search; of the only one there is without name and data.

    Raises ConfigError: no such search, or several; the line says which there are.
    """
    there = sorted(path.parent for path in (root / "searches").glob("*/search.json"))
    chosen = [each for each in there if name in (None, each.name.partition("@")[0])]
    chosen = [each for each in chosen if data in (None, each.name.partition("@")[2])]
    if len(chosen) == 1:
        return chosen[0]
    what = "several searches" if chosen else f"no search {name or ''}{f' on {data}' if data else ''}"
    listed = ", ".join(each.name for each in chosen or there)
    hint = f"give name and data of one of: {listed}" if listed else "no search was launched there yet"
    raise ConfigError(f"{what} in {root}; {hint}")


def read_about(folder: Path) -> dict[str, Any]:
    """The content of `search.json`, with a metric in each case."""
    return {"metric": TOP1, **(RunFolder(folder).read("search.json") or {})}


def proposals(folder: Path) -> list[dict[str, Any]]:
    """The rows of a search's trials, in order."""
    return [row for row in jsonl.read(folder / FILE) if "hash" in row]


def read_trials(root: Path, folder: Path) -> list[dict[str, Any]]:
    """The rows of a search's trials, each with how it ended under `ended`.

    That is `outcome` (done, failed, too costly, open), `curve` (score by epoch), `seconds` and `error`. A shipped row
    holds it already.
    """
    metric = read_about(folder)["metric"]["name"]
    return [{"ended": _ended(root, row, metric), **row} for row in proposals(folder)]


def launched(root: Path, name: str = "*", data: str | None = None) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, data and row of every trial that was launched, of the searches of a name or of all."""
    for path in sorted((root / "searches").glob(f"{name}@{data or '*'}/{FILE}")):
        search, _, key = path.parent.name.partition("@")
        rows = [row for row in proposals(path.parent) if "ended" not in row and not too_costly(row)]
        yield from ((search, key, row) for row in rows)


def too_costly(row: dict[str, Any]) -> list[str]:
    """The costs of a trial that are above their limits."""
    return [name for name, excess in row["excess"].items() if excess > 0]


def score(row: dict[str, Any], metric: str) -> float:
    """The validation score in a row of metrics, with the averaged weights where there are any."""
    return float(row.get(f"val_{metric}_ema", row[f"val_{metric}"]))


def last_score(ended: dict[str, Any]) -> float | None:
    """The score of a trial's last epoch; None before its first."""
    return list(ended["curve"].values())[-1] if ended["curve"] else None


def _ended(root: Path, row: dict[str, Any], metric: str) -> dict[str, Any]:
    folder = RunFolder(root / row["hash"])
    result = folder.result() or {}
    curve = {str(each["epoch"]): score(each, metric) for each in jsonl.read(folder.path / "metrics.jsonl")}
    outcome, error = result.get("state", OPEN), result.get("error", "")
    if too_costly(row):
        outcome = "too costly"
    elif outcome == "done" and str(result["epochs"]) not in curve:
        outcome, error = "failed", "metrics.jsonl has no row of the last epoch"
    return {"outcome": outcome, "curve": curve, "seconds": result.get("seconds"), "error": error}


def make_study(
    about: dict[str, Any], rows: Sequence[dict[str, Any]], sampler: optuna.samplers.BaseSampler | None = None
) -> optuna.Study:
    """A search as a study of Optuna in memory.

    Its attributes are those of `search.json` (name, setting, question, metric, objectives, constraints). Those of a
    trial are outcome, hash, source (sampler, or the name of a known configuration), its score by the metric's name,
    costs, epochs, minutes and error. A trial that is too costly or failed is pruned in Optuna's words, and infeasible.

    Args:
        about: the content of `search.json` (`read_about`).
        rows: its trials (`read_trials`).
    """
    import optuna
    from optuna.distributions import json_to_distribution
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every study
    name, objectives = about["metric"]["name"], about["objectives"]
    better = optuna.study.StudyDirection
    first = better.MAXIMIZE if about["metric"]["higher_is_better"] else better.MINIMIZE
    directions = [first, *(better.MINIMIZE for _ in objectives[1:])]
    label = f"{about['name']}@{about['setting']}"
    study = optuna.create_study(study_name=label, directions=directions, sampler=sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(objectives)
    for key in ("name", "setting", "question", "metric", "objectives", "constraints"):
        study.set_user_attr(key, about[key])
    for row in rows:
        ended, last = row["ended"], last_score(row["ended"])
        done = ended["outcome"] == "done"
        values: Any = [last, *(row["costs"][cost] for cost in objectives[1:])] if done else None
        minutes = {} if ended["seconds"] is None else {"minutes": ended["seconds"] / 60}
        study.add_trial(
            create_trial(
                state={"done": TrialState.COMPLETE, OPEN: TrialState.RUNNING}.get(ended["outcome"], TrialState.PRUNED),
                values=values,
                params=row["parameters"],
                distributions={key: json_to_distribution(text) for key, text in row["distributions"].items()},
                constraints={**row["excess"], **({"failed": 1.0} if ended["outcome"] == "failed" else {})},
                user_attrs={
                    **{"outcome": ended["outcome"], "hash": row["hash"], "source": row["source"], name: last},
                    **row["costs"],
                    **{"epochs": max(map(int, ended["curve"]), default=0), "error": ended["error"], **minutes},
                },
            )
        )
    return study


def best_trials(study: optuna.Study, top: int | None = None) -> list[optuna.trial.FrozenTrial]:
    """The front, or every trial that is done if no cost is sought; the best by the metric first."""
    from optuna.trial import TrialState

    alone = len(study.directions) == 1
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if alone else study.best_trials
    higher = study.user_attrs["metric"]["higher_is_better"]
    return sorted(done, key=lambda trial: trial.values[0], reverse=higher)[:top]
