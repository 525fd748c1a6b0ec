"""Searches in process: their spaces, and proposals whose runs end in no time."""

import statistics
from itertools import product
from pathlib import Path

import optuna
import pytest
from small import RUN
from small_search import write_search

from metamixer import ConfigError, digest, override
from metamixer.mixer import resolve_mixer
from metamixer.training.folder import RunFolder
from sweeps import ask as sweeps_ask
from sweeps.ask import Asker
from sweeps.confirm import confirm
from sweeps.iso_cost import cost
from sweeps.search import Definition, Search, load_search
from sweeps.space import Choice, Integer, Mixer, Real, Together, parameters_of
from sweeps.trials import FILE, best_trials, ended, make_study, read_trials

KEY = "model.stages.*.token_mixer"


def drawn(definition, number):
    """Random configurations of a space, with their parameters."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(number):
        trial = study.ask()
        yield definition.config(trial), trial.params


def definition(**search):
    return Definition("tiny", "Why?", "tiny", Search(bases={"tiny": RUN}, **search), RUN)


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
    return [ended(asker.root, row)["outcome"] for row in read_trials(asker.folder)]


def study_of(asker):
    return make_study(asker.root, asker.folder, asker.about.to_dict())


# spaces


def test_a_mixer_offers_exactly_what_the_slots_themselves_accept():
    loaded = load_search("mixer")
    shipped = loaded.search.space[KEY]
    expected, offered = set(), set()
    for key, activation, value in product(shipped.query_key, shipped.activation, shipped.coefficient_value):
        slots = {
            "query": "linear",
            "query_key": shipped.query_key[key],
            "coefficient_value": shipped.coefficient_value[value],
        }
        for slot in ("query_key", "coefficient_value"):
            if isinstance(slots[slot], dict) and isinstance(slots[slot].get("kernel_size"), Choice):
                slots[slot] = {**slots[slot], "kernel_size": 3}
        try:
            resolve_mixer({**slots, "activation": activation})
        except ConfigError:
            continue
        expected.add((key, activation, value))
    for run, parameters in drawn(loaded, 400):
        named = {name.removeprefix(f"{KEY}.").split("[")[0]: value for name, value in parameters.items()
                 if "]." not in name}  # fmt: skip
        mixer = run.model.stages[0].token_mixer
        made = named.get("query_key"), named["activation"], named.get("coefficient_value", mixer.coefficient_value.name)
        offered.add(made)
    assert offered == expected


@pytest.mark.parametrize(("options", "line"), [((1, True), "1 and True"), ((3, 3.0), "3 and 3.0"), ((0, 2, 0), "0")])
def test_equal_options_are_refused_as_one_would_hide_the_other(options, line):
    with pytest.raises(ValueError, match=f"option {line} is there twice"):
        Choice(options=options)
    assert len(Choice(options={"a": 1, "b": True}).options) == 2


def test_the_parameters_of_every_configuration_are_found_again():
    shipped = load_search("mixer")
    space, base = shipped.search.space, shipped.base
    for run, parameters in drawn(shipped, 60):
        assert parameters_of(space, base, run) == parameters
    with pytest.raises(ConfigError, match="differs from the base in more than the search's space"):
        parameters_of(space, base, override(run, {"recipe.epochs": 9}))
    with pytest.raises(ConfigError, match=r"token_mixer\.query: the search's space does not have"):
        parameters_of(space, base, override(base, {KEY: "pooling"}))


def test_a_parameter_of_an_operation_is_there_only_with_it():
    key = f"{KEY}.query_key"
    space = {key: Choice(options=({"name": "depthwise", "norm": True, "kernel_size": Integer(low=3, high=7, step=2)},
                                  {"name": "linear", "expansion": Real(low=1.0, high=2.0)}))}  # fmt: skip
    seen = set()
    for _, parameters in drawn(definition(space=space), 30):
        seen.add((parameters[key], *sorted(parameters.keys() - {key})))
    assert seen == {("depthwise", f"{key}[depthwise].kernel_size"), ("linear", f"{key}[linear].expansion")}


def test_an_option_that_changes_less_than_another_is_found_again():
    space = {"lr": Together(options={"base": {}, "low": {"recipe.lr": 1e-4}, "both": {"recipe.lr": 1e-4, "seed": 7}})}
    for label, changes in (("base", {}), ("low", {"recipe.lr": 1e-4}), ("both", {"recipe.lr": 1e-4, "seed": 7})):
        assert parameters_of(space, RUN, override(RUN, changes)) == {"lr": label}
    with pytest.raises(ConfigError, match="differs from the base in more"):
        parameters_of(space, RUN, override(RUN, {"seed": 7}))


@pytest.mark.parametrize(
    ("search", "line"),
    [
        ({"space": {"recipe.lrr": Real(low=0.1, high=1.0)}}, "no key 'lrr' here"),
        ({"space": {"recipe.lr": Real(low=0.1, high=1.0)}, "known": {"base": {}}}, "known 'base': recipe.lr"),
        ({"space": {"recipe.lr": 0.1}}, "nothing to choose from"),
        (
            {"space": {f"{KEY}.activation": Choice(options=("gelu", "gellu", "relu"))}},
            "activation: option 'gellu' makes no run",
        ),
        (
            {"space": {"lr": Together(options={"a": {"recipe.lr": 0.1}, "b": {"recipe.lrr": 0.2}})}},
            "lr: option 'b' makes no run",
        ),
        (
            {
                "space": {
                    "model.stages.0.width": Choice(options=(4, 8)),
                    "model.stages.*.width": Choice(options=(8, 16)),
                }
            },
            "model.stages.*.width comes after model.stages.0.width",
        ),
        (
            {
                "space": {
                    "recipe.lr": Real(low=0.1, high=1.0),
                    "lr": Together(options={"a": {"recipe.lr": 0.1}, "b": {}}),
                }
            },
            "recipe.lr comes after recipe.lr",
        ),
    ],
)
def test_what_a_search_gets_wrong_is_one_line(search, line):
    with pytest.raises(ConfigError) as error:
        definition(**search).dimensions()
    assert line in str(error.value) and "\n" not in str(error.value)


def test_an_option_that_few_others_fit_is_no_misspelt_one():
    """A micro-batch of 62 divides one batch of sixteen."""
    batches = Choice(options=tuple(range(32, 64, 2)))
    space = {"recipe.batch_size": batches, "recipe.micro_batch": Choice(options=(*range(2, 32, 2), 62))}
    assert definition(space=space).dimensions().keys() == space.keys()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("objectives=('macs',),", "'top1' first"),
        ("constraint={'macs': 1e6},", "unknown key 'constraint'"),
        ("known={'a': {'recipe.lr': 1.0}},", "known 'a': recipe.lr"),
    ],
)
def test_what_a_searchs_file_gets_wrong_is_one_line_with_its_place(tmp_path, text, line):
    file = write_search(tmp_path, more=text)
    with pytest.raises(ConfigError) as error:
        load_search(str(file)).dimensions()
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("slots", "line"),
    [
        ({"activation": ("gelu", "gellu")}, "no activation operation 'gellu'"),
        ({"coefficient_value": ("matmul",)}, "no query_key option fits"),
    ],
)
def test_a_mixer_is_looked_at_once_users_operations_are_known(slots, line):
    fitting = {"query": ("linear",), "query_key": ("depthwise",), "activation": ("gelu",)}
    fitting["coefficient_value"] = ("linear",)
    mixer = Mixer(**fitting | slots)
    with pytest.raises(ConfigError, match=line):
        definition(space={KEY: mixer, "recipe.lr": Real(low=0.1, high=1.0)}).dimensions()


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ('bases={"tiny": BASE}', "bases={}", "bases: dictionary should have at least 1 item"),
        ('bases={"tiny": BASE}', 'bases={"tiny": lambda: BASE}', "base 'tiny' must be a RunConfig, got function"),
        ("Choice(options=(3, 5))", "Integer(low=5, high=3)", "(low=5, high=3)"),
    ],
)
def test_what_else_a_searchs_file_gets_wrong_is_one_line(tmp_path, before, after, line):
    file = write_search(tmp_path)
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(ConfigError) as error:
        load_search(str(file)).dimensions()
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_search_needs_validation_images(tmp_path):
    with pytest.raises(ConfigError, match="validation images"):
        load_search(str(write_search(tmp_path)), overrides={"data.val_samples": 0})


def test_the_search_in_the_documents_is_one(tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "search.md").read_text()
    (tmp_path / "example.py").write_text(text.split("```python\n")[1].split("```")[0])
    example = load_search(str(tmp_path / "example.py"))
    assert example.dimensions()
    costs = [cost(run).macs for run, _ in drawn(example, 6)]
    assert min(costs) < example.search.constraints["macs"], "nothing fits its limit"


# proposals


def test_what_costs_too_much_is_recorded_and_never_trained(tmp_path, root):
    asker = begin(tmp_path, root, wanted=6)
    found = search(asker)
    rows = read_trials(asker.folder)
    assert found.count("done") == 6 and set(found) == {"done", "too costly"}
    for row, outcome in zip(rows, found, strict=True):
        assert (row["costs"]["macs"] > 3e5) == (outcome == "too costly") == (not (root / row["hash"]).exists())
    assert rows[0]["source"] == "base" and rows[0]["hash"] == digest(asker.definition.base)
    assert len({row["hash"] for row in rows}) == len(rows), "a configuration was tried twice"
    for trial in study_of(asker).trials:
        if trial.values:
            lr = asker.definition.config(optuna.trial.FixedTrial(trial.params)).recipe.lr
            assert trial.values == [pytest.approx(1000 * lr), trial.user_attrs["macs"]]


def test_the_sampler_learns_from_what_is_done(tmp_path, root):
    """The score is the learning rate: after eight trials at random it rises."""
    asker = begin(tmp_path, root, wanted=30, more='objectives=("top1",), startup=8,')
    search(asker)
    rates = [trial.params["recipe.lr"] for trial in study_of(asker).trials]
    assert statistics.median(rates[-12:]) > 2 * statistics.median(rates[:8])


def test_a_constraint_out_of_reach_is_one_line(tmp_path, root, monkeypatch):
    monkeypatch.setattr(sweeps_ask, "TOO_COSTLY", 3)
    with pytest.raises(ConfigError, match="3 proposals in a row cost more than params ≤ 10"):
        search(begin(tmp_path, root, more='objectives=("top1",), constraints={"params": 10},'))


def test_a_small_space_is_tried_once_and_then_it_ends(root):
    asker = Asker(root, definition(space={f"{KEY}.activation": Choice(options=("gelu", "relu", "silu"))}), 10)
    assert search(asker, at_once=2) == ["done"] * 3
    assert sorted(row["parameters"][f"{KEY}.activation"] for row in read_trials(asker.folder)) == [
        "gelu",
        "relu",
        "silu",
    ]


def test_sizes_that_do_not_fit_are_no_trials(root):
    """Heads of 6 or 7 channels divide no width: that shows only when the network is built."""
    attention = {"query": "linear", "activation": "softmax", "coefficient_value": "matmul"}
    key = {"name": "scaled_dot", "head_dim": Integer(low=4, high=8)}
    asker = Asker(root, definition(space={KEY: {**attention, "query_key": key}}), 10)
    search(asker)
    assert sorted(row["parameters"][f"{KEY}.query_key.head_dim"] for row in read_trials(asker.folder)) == [4, 8]


def test_a_run_that_diverges_counts_and_is_no_place_to_return_to(tmp_path, root):
    asker = begin(tmp_path, root, wanted=8)
    found = search(asker, diverges=lambda config: config.recipe.lr > 2e-3)
    assert found.count("failed") > 0 and found.count("failed") + found.count("done") == 8
    study = study_of(asker)
    for trial in study.trials:
        if trial.user_attrs["outcome"] == "failed":
            assert trial.params["recipe.lr"] > 2e-3 and trial.values is None and trial.constraints["failed"] > 0
            assert "not a number" in trial.user_attrs["error"]
    assert {trial.user_attrs["outcome"] for trial in best_trials(study)} == {"done"}


def test_trials_below_the_median_at_the_same_epoch_are_stopped(tmp_path, root):
    asker = begin(tmp_path, root, wanted=9, epochs=3, more='objectives=("top1",),')
    for run in asker.open_runs(6):
        train(asker, run)
    scores = sorted(1000 * run["parameters"]["recipe.lr"] for run in read_trials(asker.folder))
    median = statistics.median(scores)
    good, bad, young = asker.open_runs(3)
    for run, epochs, score in ((good, 2, median * 1.01), (bad, 2, median * 0.99), (young, 0, 0)):
        folder = RunFolder(root / run.hash)
        folder.create(run.config)
        for epoch in range(1, epochs + 1):
            folder.append_metrics({"epoch": epoch, "val_top1": score * epoch})
    assert [run.hash for run in asker.unpromising([good, bad, young])] == [bad.hash]
    assert [run.hash for run in asker.open_runs(9)] == [good.hash, young.hash], "a stopped trial has ended"
    assert asker.ended() == 7 and asker.unpromising([good, bad, young]) == []
    (stopped,) = [t for t in study_of(asker).trials if t.user_attrs["outcome"] == "stopped"]
    assert stopped.state == optuna.trial.TrialState.PRUNED and max(stopped.intermediate_values) == 2
    assert "stopped early" in RunFolder(root / bad.hash).result()["error"]


def test_a_changed_search_is_refused_with_what_changed_and_more_trials_are_not(tmp_path, root):
    search(begin(tmp_path, root, wanted=2))
    assert search(begin(tmp_path, root, wanted=4)).count("done") == 4
    file = write_search(tmp_path)
    file.write_text(file.read_text().replace("high=1e-2", "high=2e-2").replace('macs": 3e5', 'macs": 4e5'))
    with pytest.raises(ConfigError) as error:
        Asker(root, load_search(str(file)), 4)
    assert "space.recipe.lr.high: 0.01 → 0.02" in str(error.value)
    assert "constraints.macs: 300000.0 → 400000.0" in str(error.value)
    with pytest.raises(ConfigError, match=r"base\.recipe\.epochs: 1 → 2"):
        begin(tmp_path, root, epochs=2)


def test_what_is_known_may_be_added_to_later(tmp_path, root):
    more = 'objectives=("top1", "macs"), constraints={"macs": 3e5}, known={"base": {}MORE},'
    search(begin(tmp_path, root, wanted=2, more=more.replace("MORE", "")))
    added = more.replace("MORE", ', "relu": {f"{KEY}.activation": "relu", "recipe.lr": 2e-3}')
    asker = begin(tmp_path, root, wanted=4, more=added)
    search(asker)
    sources = [row["source"] for row, outcome in zip(read_trials(asker.folder), outcomes(asker), strict=True)
               if outcome == "done"]  # fmt: skip
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
    assert len(read_trials(asker.folder)) == len(outcomes(asker))


@pytest.mark.parametrize("left", ['{"epoch": 1, "val_top1": 50.0}\n{"epoch": 2, "val_', ""])
def test_a_finished_run_without_its_last_metrics_gives_no_top1(tmp_path, root, left):
    asker = begin(tmp_path, root, wanted=1, epochs=2)
    (run,) = asker.open_runs(1)
    train(asker, run)
    (root / run.hash / "metrics.jsonl").write_text(left)
    assert outcomes(asker) == ["failed"] and "no row of the last epoch" in study_of(asker).trials[0].user_attrs["error"]


def test_latency_is_sought_on_one_scale_whatever_the_pace(tmp_path, root, monkeypatch):
    """A machine that takes a millisecond a channel, and is slower each time that it is asked."""
    asked = []

    def time_by_width(runtime, runs):
        asked.append(runtime)
        return [len(asked) * run.model.stages[0].width for run in runs]

    monkeypatch.setattr(sweeps_ask, "time_runs", time_by_width)
    more = 'objectives=("top1", "latency"), constraints={"macs": 3e5}, runtime="eager",'
    search(begin(tmp_path, root, wanted=2, more=more))
    asker = begin(tmp_path, root, wanted=4, more=more)  # later, at another pace
    search(asker)
    done = [trial for trial in study_of(asker).trials if trial.values]
    widths = [asker.definition.config(optuna.trial.FixedTrial(t.params)).model.stages[0].width for t in done]
    assert [trial.values[1] for trial in done] == pytest.approx(widths) and set(asked) == {"eager"}
    costly = [row for row in read_trials(asker.folder) if row["excess"]["macs"] > 0]
    assert not any("latency" in row["costs"] for row in costly)


def test_a_confirming_grid_overwrites_no_other_file(tmp_path, root):
    asker = begin(tmp_path, root, wanted=2)
    with pytest.raises(ConfigError, match="no trial is done yet"):
        confirm(root, asker.definition, 1, None, None)
    search(asker)
    path = tmp_path / "confirm_tiny.py"
    written = confirm(root, asker.definition, 1, (1, 2), path).read_text()
    assert confirm(root, asker.definition, 1, (1, 2), path).read_text() == written  # the same again is no loss
    with pytest.raises(ConfigError, match="another file stands there: name one with --out"):
        confirm(root, asker.definition, 1, (1, 2, 3), path)
    assert path.read_text() == written
    other = tmp_path / "new" / "other.py"
    assert "(1, 2, 3)" in confirm(root, asker.definition, 1, (1, 2, 3), other).read_text()
