"""Searches in process: what their functions propose, and proposals whose runs end in no time."""

import statistics
from pathlib import Path

import optuna
import pytest
from optuna.trial import FixedTrial
from small import RUN
from small_search import write_search

from metamixer import ConfigError, digest
from metamixer.training.folder import RunFolder
from sweeps import ask as sweeps_ask
from sweeps.ask import Asker
from sweeps.confirm import confirm
from sweeps.iso_cost import cost
from sweeps.search import LoadedSearch, Search, load_search
from sweeps.trials import FILE, best_trials, read_trials, study_of

KEY = "model.stages.*.token_mixer"


def loaded(propose, **search):
    return LoadedSearch("tiny", "Why?", "tiny", Search(bases={"tiny": RUN}, propose=propose, **search), RUN)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def begin(tmp_path, root, wanted=4, epochs=1, more=None):
    return Asker(root, load_search(str(write_search(tmp_path, wanted, epochs, *([more] if more else [])))), wanted)


def train(asker, run, score=lambda config: config.recipe.lr * 1000, diverges=lambda config: False):
    """Leave the files of a run that has ended: accuracies that grow to a score."""
    folder = RunFolder(asker.root / run.hash)
    folder.create(run.config)
    if diverges(run.config):
        return folder.fail("the loss is not a number in epoch 1", 1)
    epochs = run.config.recipe.total_epochs
    for epoch in range(1, epochs + 1):
        folder.append_metrics({"epoch": epoch, "val_top1": 0.0, "val_top1_ema": score(run.config) * epoch})
    folder.write("result.json", {"state": "done", "epochs": epochs, "top1": 99.0, "seconds": 1.0})
    return None


def search(asker, at_once=1, **how):
    while runs := asker.open_runs(at_once):
        for run in runs:
            train(asker, run, **how)
    return outcomes(asker)


def outcomes(asker):
    return [row["ended"]["outcome"] for row in read_trials(asker.folder)]


# a search's file


def test_the_shipped_search_makes_runs_and_what_is_known_is_what_it_says():
    for data in ("digits", "fashion-mnist"):
        search = load_search("mixer", data)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(50):
            search.config(study.ask())
    mixers = {
        name: [slot["name"] for slot in search.config(FixedTrial(known)).model.stages[0].token_mixer.to_dict().values()]
        for name, known in search.search.known.items()
    }
    assert mixers == {
        "ffnet": ["linear", "depthwise", "gelu", "depthwise"],
        "attention": ["linear", "scaled_dot", "softmax", "matmul"],
    }


def fails(trial):
    return {"recipe.lr": trial.suggest_float("lr", 0.1, 1.0)["oops"]}


@pytest.mark.parametrize(
    ("propose", "known", "line"),
    [
        (lambda trial: {"recipe.lrr": trial.suggest_float("lr", 0.1, 1.0)}, {}, "no key 'lrr'; did you mean 'lr'?"),
        (lambda trial: trial.suggest_float("lr", 0.1, 1.0), {}, "return changes by dotted key"),
        (fails, {}, "test_search.py:"),
        (lambda trial: {"recipe.lr": trial.suggest_float("lr", 0.1, 1.0)}, {"a": {}}, "known 'a': it lacks 'lr'"),
        (lambda trial: {KEY: trial.suggest_categorical("mixer", ["pooling"])}, {"a": {"mixer": "pool"}}, "known 'a'"),
    ],
)
def test_what_a_search_gets_wrong_is_one_line(root, propose, known, line):
    with pytest.raises(ConfigError, match=line) as error:
        Asker(root, loaded(propose, known=known), 4).open_runs(1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ('minimize=("macs",)', 'minimize=("flops",)', "no cost 'flops': macs, params, or latency:RUNTIME"),
        ("constraints=", "constraint=", "unknown key 'constraint'"),
        ('bases={"tiny": BASE}', "bases={}", "bases: dictionary should have at least 1 item"),
        ("propose=propose", "propose={}", "propose: input should be callable"),
    ],
)
def test_what_a_searchs_file_gets_wrong_is_one_line_with_its_place(tmp_path, before, after, line):
    file = write_search(tmp_path)
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(ConfigError) as error:
        load_search(str(file))
    assert line in str(error.value) and "\n" not in str(error.value) and "tiny.py:" in str(error.value)


def test_a_search_needs_validation_samples(tmp_path):
    with pytest.raises(ConfigError, match="validation samples"):
        load_search(str(write_search(tmp_path)), overrides={"data.val_samples": 0})


def test_the_search_in_the_documents_is_one(tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "search.md").read_text()
    (tmp_path / "example.py").write_text(text.split("```python\n")[1].split("```")[0])
    example = load_search(str(tmp_path / "example.py"))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    costs = [cost(example.config(study.ask())).macs for _ in range(6)]
    assert min(costs) < example.search.constraints["macs"], "nothing fits its limit"


# proposals


def test_what_costs_too_much_is_never_trained_and_known_ones_come_first(tmp_path, root):
    asker = begin(tmp_path, root, wanted=12)
    assert search(asker) == ["done"] * 12
    rows = read_trials(asker.folder)
    assert all(row["costs"]["macs"] <= 3e5 for row in rows)
    assert rows[0]["source"] == "base" and rows[0]["hash"] == digest(asker.loaded.base)
    assert len({row["hash"] for row in rows}) == len(rows), "a configuration was tried twice"
    for trial in study_of(asker.folder).trials:
        assert trial.values == [pytest.approx(1000 * trial.params["lr"]), trial.user_attrs["macs"]]


def test_the_sampler_learns_from_what_is_done(tmp_path, root):
    """The score is the learning rate: after ten trials at random it rises."""
    asker = begin(tmp_path, root, wanted=30, more="minimize=(),")
    search(asker)
    rates = [trial.params["lr"] for trial in study_of(asker.folder).trials]
    assert statistics.median(rates[-12:]) > 2 * statistics.median(rates[:10])


def test_a_constraint_out_of_reach_is_one_line(tmp_path, root, monkeypatch):
    monkeypatch.setattr(sweeps_ask, "PROPOSALS", 3)
    with pytest.raises(ConfigError, match=r"none of 3 proposals makes a run, e.g. params .* is above the limit, 10"):
        search(begin(tmp_path, root, more='constraints={"params": 10},'))
    with pytest.raises(ConfigError, match=r"known 'base': params .* is above the limit, 10"):
        search(begin(tmp_path, root, more='constraints={"params": 10}, known={"base": AS_BASE},'))


def test_a_small_space_is_tried_once_and_then_it_ends(root):
    activations = ["gelu", "relu", "silu"]
    asker = Asker(root, loaded(lambda trial: {f"{KEY}.activation": trial.suggest_categorical("a", activations)}), 10)
    assert search(asker, at_once=2) == ["done"] * 3
    assert sorted(row["parameters"]["a"] for row in read_trials(asker.folder)) == activations


def test_sizes_that_do_not_fit_are_no_trials(root):
    """Heads of 6 or 7 channels divide no width: that shows only when the network is built."""

    def propose(trial):
        key = {"name": "scaled_dot", "head_dim": trial.suggest_int("head", 4, 8)}
        slots = {"query": "linear", "query_key": key, "activation": "softmax", "coefficient_value": "matmul"}
        return {KEY: slots}

    asker = Asker(root, loaded(propose), 10)
    search(asker)
    assert sorted(row["parameters"]["head"] for row in read_trials(asker.folder)) == [4, 8]


def test_a_parameter_that_only_some_trials_have(root):
    def propose(trial):
        if trial.suggest_categorical("key", ["depthwise", "linear"]) == "linear":
            return {f"{KEY}.query_key": {"name": "linear", "expansion": 1.0}}
        size = trial.suggest_int("size", 3, 5, step=2)
        return {f"{KEY}.query_key": {"name": "depthwise", "norm": True, "kernel_size": size}}

    asker = Asker(root, loaded(propose), 3)
    search(asker)
    met = sorted(tuple(trial.params.items()) for trial in study_of(asker.folder).trials)
    assert met == [(("key", "depthwise"), ("size", 3)), (("key", "depthwise"), ("size", 5)), (("key", "linear"),)]


def test_a_run_that_diverges_counts_and_is_no_place_to_return_to(tmp_path, root):
    asker = begin(tmp_path, root, wanted=8)
    found = search(asker, diverges=lambda config: config.recipe.lr > 2e-3)
    assert found.count("failed") > 0 and found.count("failed") + found.count("done") == 8
    study = study_of(asker.folder)
    for trial in study.trials:
        if trial.user_attrs["outcome"] == "failed":
            assert trial.params["lr"] > 2e-3 and trial.values is None and trial.constraints["failed"] > 0
            assert "not a number" in trial.user_attrs["error"]
    assert {trial.user_attrs["outcome"] for trial in best_trials(study)} == {"done"}


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("1e-4, 1e-2", "1e-4, 2e-2", "other trial 0:"),
        ("[3, 5]", "[3, 5, 7]", "other trial 0:"),
        ("width * (1 + i // 2)", "width", "other trial 0:"),
        ('("width",', '("wide",', "other trial 0:"),
        ('{"macs": 3e5}', '{"macs": 4e5}', "other constraints:"),
        ('minimize=("macs",)', "minimize=()", "other objectives:"),
        ('"recipe.epochs": 1', '"recipe.epochs": 2', "other base, trial 0:"),
    ],
)
def test_a_changed_search_is_refused_with_what_changed(tmp_path, root, before, after, line):
    begin(tmp_path, root, more='minimize=("macs",), constraints={"macs": 3e5},').open_runs(1)
    file = tmp_path / "tiny.py"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(ConfigError, match=line):
        Asker(root, load_search(str(file)), 4)


def test_more_trials_and_known_configurations_may_be_added_later(tmp_path, root):
    more = 'minimize=("macs",), constraints={"macs": 3e5}, known={"base": AS_BASE MORE},'
    search(begin(tmp_path, root, wanted=2, more=more.replace("MORE", "")))
    added = more.replace("MORE", ', "relu": AS_BASE | {"activation": "relu", "lr": 2e-3}')
    asker = begin(tmp_path, root, wanted=4, more=added)
    search(asker)
    sources = [row["source"] for row in read_trials(asker.folder)]
    assert sorted(sources) == ["base", "relu", "sampler", "sampler"]


def test_a_run_that_is_done_already_is_not_trained_again(tmp_path, root):
    asker = begin(tmp_path, root, wanted=1)
    (run,) = asker.open_runs(1)
    (root / "searches" / "tiny@tiny" / FILE).unlink()  # as if a grid had trained it
    train(asker, run)
    assert search(asker) == ["done"]


def test_a_row_that_a_kill_tore_is_proposed_again(tmp_path, root):
    asker = begin(tmp_path, root, wanted=3)
    search(asker, at_once=3)
    path = asker.folder / FILE
    path.write_bytes(path.read_bytes()[:-40])  # the last trial's
    assert search(asker).count("done") == 3


@pytest.mark.parametrize("left", ['{"epoch": 1, "val_top1": 50.0}\n{"epoch": 2, "val_', ""])
def test_a_finished_run_without_its_last_metrics_gives_no_score(tmp_path, root, left):
    asker = begin(tmp_path, root, wanted=1, epochs=2)
    (run,) = asker.open_runs(1)
    train(asker, run)
    (root / run.hash / "metrics.jsonl").write_text(left)
    assert (
        outcomes(asker) == ["failed"]
        and "no row of the last epoch" in study_of(asker.folder).trials[0].user_attrs["error"]
    )


def test_latency_is_sought_in_units_of_the_bases_whatever_the_pace(tmp_path, root, monkeypatch):
    """A machine that takes a millisecond a channel, and is slower each time that it is asked."""
    asked = []

    def time_by_width(runtime, runs):
        assert all(cost(run).macs <= 3e5 for run in runs), "timed in vain"
        asked.append(runtime)
        return [len(asked) * run.model.stages[0].width for run in runs]

    monkeypatch.setattr(sweeps_ask, "time_runs", time_by_width)
    more = 'minimize=("latency:eager",), constraints={"macs": 3e5, "latency:eager": 1.5},'
    asker = begin(tmp_path, root, wanted=4, more=more)
    search(asker)
    for row in read_trials(asker.folder):
        assert row["costs"]["latency:eager"] == pytest.approx(row["parameters"]["width"] / 8)
    done = [trial for trial in study_of(asker.folder).trials if trial.values]
    assert set(asked) == {"eager"} and {trial.values[1] for trial in done} <= {0.5, 1.0}


def test_a_confirming_grid_overwrites_no_other_file(tmp_path, root):
    asker = begin(tmp_path, root, wanted=2)
    path = tmp_path / "confirm_tiny.py"
    with pytest.raises(ConfigError, match="no trial is done yet"):
        confirm(root, asker.loaded, 1, None, path)
    search(asker)
    confirm(root, asker.loaded, 1, (1, 2), path)
    written = path.read_text()
    with pytest.raises(FileExistsError):
        confirm(root, asker.loaded, 1, (1, 2, 3), path)
    assert path.read_text() == written
