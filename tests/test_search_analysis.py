"""A search's trials in Optuna's study: the front and the importances against what is known, and the pictures."""

import json
import random
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution, distribution_to_json
from rich.console import Console

from analysis.plots import save
from analysis.results import of_search, open_runs, write
from analysis.search import (
    export,
    front_picture,
    importances_picture,
    load_study,
    render_trials,
    trials_frame,
)
from metamixer import jsonl

TOP1 = {"name": "top1", "label": "top-1", "unit": "%", "higher_is_better": True, "decimals": 2}
RANGES = {
    "slot": CategoricalDistribution(["a", "b", None]),
    "slot[a].kernel": CategoricalDistribution([3, 5]),
    "depth": IntDistribution(1, 4),
    "recipe.lr": FloatDistribution(0.0, 1.0),
}


def write_trials(folder, objectives=("top1", "macs"), trials=60, label="toy@digits", **more):
    """Trials whose accuracy is 80 + 10·lr + depth, plus 2 for kernel 5, and whose cost is the depth."""
    place = folder / "searches" / label
    place.mkdir(parents=True)
    name, setting = label.split("@")
    about = {"name": name, "setting": setting, "question": "Which?", "objectives": list(objectives),
             "metric": TOP1, "constraints": {"macs": 3.5e6}, **more}  # fmt: skip
    (place / "search.json").write_text(json.dumps(about))
    draw = random.Random(0)
    for number in range(trials):
        slot = draw.choice(["a", "b", None])
        params = {"slot": slot, "depth": draw.randint(1, 4), "recipe.lr": draw.random()}
        params |= {"slot[a].kernel": draw.choice([3, 5])} if slot == "a" else {}
        top1 = 80 + 10 * params["recipe.lr"] + params["depth"] + 2 * (params.get("slot[a].kernel") == 5)
        over = params["depth"] == 4
        jsonl.append(
            place / "trials.jsonl",
            {
                "trial": number,
                "hash": f"{number:016}",
                "seed": 0,
                "source": "ffnet" if number == 0 else "sampler",
                "parameters": params,
                "distributions": {name: distribution_to_json(RANGES[name]) for name in params},
                "costs": {"macs": params["depth"] * 1e6, "params": 1000},
                "excess": {"macs": params["depth"] / 3.5 - 1},
                "ended": {"outcome": "too costly" if over else "done", objectives[0]: None if over else top1,
                          "epochs": 0 if over else 2, "minutes": None if over else 1.0, "error": ""},
            },
        )  # fmt: skip
    return folder


def beaten(trial, others):
    return any(
        other["top1"] >= trial["top1"] and other["macs"] <= trial["macs"]
        and (other["top1"], other["macs"]) != (trial["top1"], trial["macs"])
        for other in others
    )  # fmt: skip


def test_the_front_is_what_no_other_trial_beats(tmp_path):
    study = load_study(write_trials(tmp_path), "toy")
    frame = trials_frame(study)
    done = frame[frame["outcome"] == "done"].to_dict("records")
    assert {t.number for t in study.best_trials} == {row["number"] for row in done if not beaten(row, done)}
    assert set(frame["outcome"]) == {"done", "too costly"}
    assert len(frame) == 60 and frame[frame["outcome"] == "too costly"]["top1"].isna().all()
    assert {row["epochs"] for row in done} == {2} and {row["minutes"] for row in done} == {1.0}


def test_a_metric_that_should_be_low_is_minimized_and_named(tmp_path):
    error = {"name": "mse", "label": "error", "unit": "dB", "higher_is_better": False, "decimals": 1}
    study = load_study(write_trials(tmp_path, ("mse", "macs"), metric=error), "toy")
    done = [trial for trial in study.trials if trial.values]
    cheapest = [trial for trial in done if trial.params["depth"] == 1]
    (best,) = study.best_trials  # the lowest error grows with depth, as the cost does
    assert best.values == min(trial.values for trial in cheapest) == min(trial.values for trial in done)
    console = Console(record=True, width=120)
    console.print(render_trials(study))
    assert f"{best.values[0]:.1f} dB" in console.export_text()
    assert front_picture(study).get_xlabel() == "validation error (dB)"


def test_importances_say_what_matters(tmp_path):
    axes = importances_picture(load_study(write_trials(tmp_path), "toy", "digits"))
    names = [label.get_text() for label in axes.get_yticklabels()]
    shares = dict(zip(names, (bar.get_width() for bar in axes.patches), strict=True))
    assert sum(shares.values()) == pytest.approx(1) and set(names) == {"recipe.lr", "depth", "slot"}
    # variances: of lr 100/12, of depths 1 to 3 2/3
    assert shares["recipe.lr"] > 0.75 and 0.01 < shares["depth"] < 0.2


@pytest.mark.parametrize(("objectives", "trials"), [(("top1", "macs"), 60), (("top1",), 60), (("top1", "macs"), 1)])
def test_pictures_and_tables_come_out(tmp_path, objectives, trials):
    study = load_study(write_trials(tmp_path, objectives, trials), "toy")
    for picture in (front_picture(study), importances_picture(study)):
        save(picture, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 5000
    console = Console(record=True, width=120)
    console.print(render_trials(study))
    text = console.export_text()
    if trials == 60:
        assert f"{max(t.values[0] for t in study.trials if t.values):.2f}" in text
        assert "lr" in text and "too costly" in text and "launch.py confirm" in text


def test_a_diverged_trial_does_not_squeeze_the_front():
    study = load_study(open_runs(Path(__file__).parent.parent / "notebooks" / "results", "search-mixer"), "mixer")
    scores = sorted(trial.values[0] for trial in study.trials if trial.values)
    axes = front_picture(study)
    left, right = axes.get_xlim()
    assert scores[1] < 13 and 70 < left < scores[2] and scores[-1] < right < 90  # two trials are at chance
    assert axes.get_title("right").startswith("2 trials")


def test_an_absent_search_is_one_line(tmp_path):
    write_trials(tmp_path, trials=1)
    with pytest.raises(ValueError, match=r"no search other in .*; there are toy@digits"):
        load_study(tmp_path, "other")
    (tmp_path / "searches" / "toy@digits" / "trials.jsonl").unlink()
    nothing = load_study(tmp_path, "toy")
    assert "fewer than 8" in importances_picture(nothing).texts[0].get_text()
    assert "fewer than 1" in front_picture(nothing).texts[0].get_text()
    Console(record=True).print(render_trials(nothing))


def test_of_several_searches_none_is_taken_for_the_one_that_was_meant(tmp_path):
    for label in ("toy@digits", "toy@cifar10", "other@digits"):
        write_trials(tmp_path, trials=1, label=label)
    with pytest.raises(ValueError, match=r"several searches toy in .*; there are toy@cifar10, toy@digits"):
        load_study(tmp_path, "toy")
    assert load_study(tmp_path, "other").user_attrs["name"] == "other"
    assert load_study(tmp_path, "toy", "cifar10").user_attrs["setting"] == "cifar10"


def test_a_shipped_and_an_exported_study_are_the_same(tmp_path):
    study = load_study(write_trials(tmp_path / "runs"), "toy")
    write(tmp_path / "packs", [of_search(tmp_path / "runs", "toy", "digits")])
    shipped = load_study(open_runs(tmp_path / "packs"), "toy")
    assert trials_frame(shipped).equals(trials_frame(study)) and shipped.user_attrs == study.user_attrs
    export(study, tmp_path / "study.db")
    exported = optuna.load_study(study_name="toy@digits", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert trials_frame(exported).equals(trials_frame(study)) and exported.user_attrs == study.user_attrs
    with pytest.raises(FileExistsError):
        export(study, tmp_path / "study.db")
