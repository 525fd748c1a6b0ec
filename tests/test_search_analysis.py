"""A search's trials as a frame: the front and the importances against what is known, and the pictures."""

import json
import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from rich.console import Console

from analysis.plots import save
from analysis.search import (
    best,
    conclusion,
    front_picture,
    importances,
    importances_picture,
    load_trials,
    render_trials,
)

RANGES = {
    "slot": CategoricalDistribution(["a", "b", None]),
    "slot[a].kernel": CategoricalDistribution([3, 5]),
    "depth": IntDistribution(1, 4),
    "recipe.lr": FloatDistribution(0.0, 1.0),
}


def study(folder, objectives=("top1", "macs"), trials=60, label="toy@digits"):
    """Trials whose accuracy is 80 + 10·lr + depth, plus 2 for kernel 5, and whose cost is the depth."""
    place = folder / "searches" / label
    place.mkdir(parents=True)
    name, setting = label.split("@")
    definition = {"name": name, "setting": setting, "question": "Which?", "objectives": list(objectives),
                  "constraints": {"macs": 3.5e6}}  # fmt: skip
    (place / "search.json").write_text(json.dumps({"schema": 1, "definition": definition, "storage": "journal"}))
    storage = JournalStorage(JournalFileBackend(str(place / "journal.log")))
    directions = ["maximize", "minimize"][: len(objectives)]
    made = optuna.create_study(study_name=label, storage=storage, directions=directions)
    draw = random.Random(0)
    for number in range(trials):
        slot = draw.choice(["a", "b", None])
        params = {"slot": slot, "depth": draw.randint(1, 4), "recipe.lr": draw.random()}
        params |= {"slot[a].kernel": draw.choice([3, 5])} if slot == "a" else {}
        values = [
            80 + 10 * params["recipe.lr"] + params["depth"] + 2 * (params.get("slot[a].kernel") == 5),
            params["depth"] * 1e6,
        ]
        over = params["depth"] == 4
        made.add_trial(
            create_trial(
                state=TrialState.PRUNED if over else TrialState.COMPLETE,
                params=params,
                distributions={name: RANGES[name] for name in params},
                values=None if over else values[: len(objectives)],
                user_attrs={"macs": values[1], "params": 1000, "source": "ffnet" if number == 0 else "sampler",
                            "hash": f"{number:016}", **({} if over else {"trained": True})},
                constraints={"macs": values[1] / 3.5e6 - 1},
            )
        )  # fmt: skip
    return made


def test_the_front_is_optunas(tmp_path):
    made = study(tmp_path)
    trials = load_trials(tmp_path)
    assert set(trials[trials["front"]]["trial"]) == {trial.number for trial in made.best_trials}
    assert set(trials["state"]) == {"done", "too costly"}
    assert len(trials) == 60 and trials[trials["state"] == "too costly"]["top1"].isna().all()
    assert best(trials)["top1"].is_monotonic_decreasing
    assert set(trials["param.slot"]) == {"a", "b", "none"}


def test_importances_say_what_matters(tmp_path):
    study(tmp_path)
    trials = load_trials(tmp_path, "toy", "digits")
    shares = importances(trials).set_index("parameter")
    everywhere = shares[~shares["conditional"]]["importance"]
    assert everywhere.sum() == pytest.approx(1) and everywhere.idxmax() == "recipe.lr"
    # variances: of lr 100/12, of depths 1 to 3 2/3; of kernel 5, in half of a third of the trials, 4 · ⅙ · ⅚
    assert everywhere["recipe.lr"] > 0.75 and 0.01 < everywhere["depth"] < 0.2
    kernel = shares.loc["slot[a].kernel"]
    within = trials[(trials["state"] == "done") & (trials["param.slot"] == "a")]
    assert kernel["conditional"] and kernel["trials"] == len(within)
    costs = importances(trials, "macs").set_index("parameter")["importance"]
    assert costs["depth"] > 0.95
    with pytest.raises(ValueError, match="'latency' was not sought"):
        importances(trials, "latency")


@pytest.mark.parametrize(("objectives", "trials"), [(("top1", "macs"), 60), (("top1",), 60), (("top1", "macs"), 1)])
def test_pictures_and_tables_come_out(tmp_path, objectives, trials):
    study(tmp_path, objectives, trials)
    frame = load_trials(tmp_path)
    axes = front_picture(frame)
    assert axes.get_ylabel() == "validation top-1 (%)" and "toy on digits" in axes.get_title(loc="left")
    for picture in (axes, importances_picture(importances(frame))):
        path = save(picture, tmp_path / "picture.png")
        assert path.stat().st_size > 5000
    console = Console(record=True, width=120)
    console.print(render_trials(frame))
    text = console.export_text()
    if trials == 60:
        assert f"{frame[frame['state'] == 'done']['top1'].max():.2f}" in text
        assert "lr" in text and "too costly" in text and "launch.py confirm" in text


def test_a_trial_that_learnt_nothing_does_not_squeeze_the_others(tmp_path):
    study(tmp_path)
    frame = load_trials(tmp_path)
    done = frame.index[frame["state"] == "done"]
    lowest = frame.loc[done, "top1"].min()
    frame.loc[done[0], "top1"] = lowest - 60
    axes = front_picture(frame)
    assert axes.get_ylim()[0] > lowest - 10
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any(word.endswith(f"down to {lowest - 60:.1f}") for word in words), words
    assert "1 trial far below all others" in conclusion(frame, importances(frame))


def test_an_absent_search_is_one_line(tmp_path):
    study(tmp_path, trials=1)
    with pytest.raises(ValueError, match=r"no search other in .*: there are toy@digits"):
        load_trials(tmp_path, "other")
    nothing = load_trials(tmp_path / "nowhere", missing="empty")
    assert len(nothing) == len(importances(nothing)) == 0
    assert front_picture(nothing).texts[0].get_text() == "no trial is done yet"


def test_of_several_searches_none_is_taken_for_the_one_that_was_meant(tmp_path):
    for label in ("toy@digits", "toy@cifar10", "other@digits"):
        study(tmp_path, trials=1, label=label)
    with pytest.raises(ValueError, match="other@digits, toy@cifar10, toy@digits; give"):
        load_trials(tmp_path)
    with pytest.raises(ValueError, match=r": toy@cifar10, toy@digits; give"):
        load_trials(tmp_path, "toy")
    assert load_trials(tmp_path, "other").attrs["name"] == "other"
    assert load_trials(tmp_path, data="cifar10").attrs["data"] == "cifar10"
