"""What a search found: its trials as Optuna's study, the best of them as a table, and Optuna's pictures.

A trial's score is that of its validation samples: the test samples have no part in a search. Everything of
`optuna.visualization.matplotlib` draws the study too.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import TrialState
from optuna.visualization import matplotlib as pictures

from metamixer.metric import readable
from sweeps.trials import best_trials, find_search, study_of

from .plots.theme import new, nothing
from .tables import Table

ENOUGH = 8  # trials, for importances to mean anything
ROWS = 20


def load_study(root: str | Path, name: str, data: str | None = None) -> optuna.Study:
    """The trials of a search, in the order in which they were proposed; see `sweeps.trials.study_of`.

    Args:
        root: the folder of the runs.
        data: the key of its bases; the only one it has if None.

    Raises ValueError: no such search, or several; the line says which there are.
    """
    return study_of(find_search(Path(root), name, data))


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """One row per trial: `number`, attributes (outcome, score, costs, epochs, hash, …) and `params_…`."""
    frame = study.trials_dataframe(attrs=("number", "user_attrs", "params"))
    return frame.rename(columns=lambda column: column.removeprefix("user_attrs_"))


def render_trials(study: optuna.Study) -> Table:
    """The best trials with their parameters."""
    about, metric = study.user_attrs, study.user_attrs["metric"]
    counts = Counter(trial.user_attrs["outcome"] for trial in study.trials)
    costs = dict.fromkeys([*about["objectives"][1:], *about["constraints"]])
    rows = []
    for trial in best_trials(study)[:ROWS]:
        found = trial.user_attrs
        score = f"{trial.values[0]:.{metric['decimals']}f} {metric['unit']}"
        row = {"trial": str(trial.number), metric["label"]: score}
        for name in costs:
            row[name] = f"{found[name]:.2f} × base" if name.startswith("latency") else readable(found[name])
        words = (f"{name} {f'{v:.3g}' if isinstance(v, float) else v}" for name, v in trial.params.items())
        rows.append(row | {"from": found["source"], "what": ", ".join(words)})
    title = f"{about['name']} on {about['setting']}: {'the front' if about['objectives'][1:] else 'the best'}"
    note = (
        f"{counts.total()} trials: {', '.join(f'{number} {name}' for name, number in counts.items())}. Scores are on "
        "validation samples, one seed, the best of many: `launch.py confirm` writes a grid that confirms them"
    )
    return Table(pd.DataFrame(rows), title, [note])


def front_picture(study: optuna.Study) -> Axes:
    """Optuna's picture of the score on validation samples against one or two costs, or of the best score so far."""
    names = [_label(study), *study.user_attrs["objectives"][1:]]
    if len(names) == 1:
        return _drawn(study, 1, pictures.plot_optimization_history, target_name=names[0])
    how = {"target_names": names[:3], "targets": lambda trial: trial.values[:3]}
    axes = _drawn(study, 1, pictures.plot_pareto_front, **how)
    scores = pd.Series([trial.values[0] for trial in study.trials if trial.values], dtype=float)
    low, high = scores.quantile([0.25, 0.75])
    near = scores[scores.between(low - 3 * (high - low), high + 3 * (high - low))]  # the others would squeeze these
    if len(names) == 2 and low < high and len(near) < len(scores):
        margin = 0.05 * (near.max() - near.min())
        axes.set_xlim(near.min() - margin, near.max() + margin)
        axes.set_title(f"{len(scores) - len(near)} trials with far scores lie outside", loc="right", fontsize=8)
    return axes


def importances_picture(study: optuna.Study) -> Axes:
    """How much of the metric's variance over the done trials each parameter explains (fANOVA, Hutter et al. 2014).

    It is Optuna's picture, of the parameters that every trial has.
    """
    how = {"evaluator": FanovaImportanceEvaluator(seed=0), "target": lambda trial: trial.values[0]}
    return _drawn(study, ENOUGH, pictures.plot_param_importances, target_name=_label(study), **how)


def _label(study: optuna.Study) -> str:
    metric = study.user_attrs["metric"]
    return f"validation {metric['label']} ({metric['unit']})"


def _drawn(study: optuna.Study, enough: int, draw: Callable[..., Axes], **how: Any) -> Axes:
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < enough:
        return nothing(new(height=2)[1], f"fewer than {enough} trials are done")
    plt.close(plt.figure())  # the first figure sets up the notebook's backend, which the context would undo
    with warnings.catch_warnings(), plt.rc_context():  # Optuna sets a style for all that follows
        warnings.simplefilter("ignore")
        return draw(study, **how)


def export(study: optuna.Study, path: Path) -> None:
    """Write the study into a new SQLite file, which optuna-dashboard opens.

    Raises OSError: the file is there already, or can't be written.
    """
    path.open("x").close()
    to = optuna.create_study(storage=f"sqlite:///{path}", study_name=study.study_name, directions=study.directions)
    to.add_trials(study.trials)
    for name, value in study.user_attrs.items():
        to.set_user_attr(name, value)
