"""Searches in process: spaces, studies that survive, and workers whose training is stood in for where it can be."""

import json
import multiprocessing
import os
import random
import time
from itertools import product
from pathlib import Path

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState
from small import RUN
from small_search import write_search

from metamixer import ConfigError, digest, override
from metamixer.config import parse
from metamixer.mixer import resolve_mixer
from metamixer.training.folder import RunFolder
from metamixer.training.train import Interrupted, train
from sweeps import Changes, Choice, Integer, Mixer, Real, Search
from sweeps.search import worker as search_worker
from sweeps.search.confirm import write_confirming_grid
from sweeps.search.definition import Definition
from sweeps.search.files import LoadedSearch, load_search
from sweeps.search.known import finished_runs, metrics, top1
from sweeps.search.launch import outcome
from sweeps.search.space import labelled, some, suggested_by
from sweeps.search.study import Journal, create_study, normal_url, search_folder
from sweeps.search.trials import Claim, Nothing, Owner, Trials, has_finished
from sweeps.search.worker import Stop, Worker, worker_folder

KEY = "model.stages.*.token_mixer"
ALONE = 'objectives=("top1",), pruning=Pruning(startup=2, warmup=1),'


def drawn(definition, seed=0):
    """Endless random configurations of a space, with their parameters; those that make no run are None."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    base = definition.base_run()
    while True:
        trial = study.ask()
        try:
            yield definition.run(base, suggested_by(trial)), trial.params
        except ConfigError as error:
            yield None, str(error)


def definition(**search):
    return LoadedSearch("tiny", "Why?", Search(bases={"tiny": RUN}, **search)).define()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def begin(tmp_path, root, wanted=4, epochs=1, more=None, owner="me"):
    """A study that is ready for workers, as one of them sees it; its lock says that it lives."""
    file = write_search(tmp_path, wanted, epochs, *([more] if more else []))
    loaded = load_search(str(file)).define()
    create_study(root, loaded, None)
    trials = Trials(root, search_folder(root, loaded.label), Owner.here(owner))
    trials.prepare(wanted)
    return trials


def stand_in(score=lambda config: config.recipe.lr * 1000, diverges=lambda config: False):
    """Training that takes no time: accuracies that grow to a score, and the files that a run leaves."""

    def trained(config, path, device, workers, teachers, after_epoch):
        folder = RunFolder(path)
        if diverges(config):
            return folder.fail("the loss is not a number in epoch 1", 1)
        for epoch in range(len(metrics(folder.path)) + 1, config.recipe.total_epochs + 1):
            row = {"epoch": epoch, "val_top1": 0.0, "val_top1_ema": score(config) * epoch}
            folder.append_metrics(row)
            after_epoch(row)
        folder.write("result.json", {"state": "done"})
        return {"state": "done"}

    return trained


def work(trials):
    return Worker(trials, Stop(), "cpu", workers=0).work()


# spaces


def test_a_mixer_offers_exactly_what_the_slots_themselves_accept():
    shipped = load_search("mixer").search.space[KEY]
    expected, offered = set(), set()
    options = {slot: labelled(getattr(shipped, slot)) for slot in ("query_key", "activation", "coefficient_value")}
    for key, activation, value in product(*options.values()):
        slots = {"query": "linear", "query_key": some(key[1]), "activation": activation[1]}
        try:
            resolve_mixer({**slots, "coefficient_value": some(value[1])})
        except ConfigError:
            continue
        expected.add((key[0], activation[0], value[0]))
    for run, parameters in (pair for pair, _ in zip(drawn(load_search("mixer").define()), range(400), strict=False)):
        assert run is not None, parameters
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
    assert len(labelled({"a": 1, "b": True})) == 2


def test_the_parameters_of_every_configuration_are_found_again():
    shipped = load_search("mixer").define()
    base = shipped.base_run()
    for run, parameters in (pair for pair, _ in zip(drawn(shipped), range(60), strict=False)):
        assert shipped.parameters_of(base, run) == parameters
    with pytest.raises(ConfigError, match=r"recipe\.epochs: not in the search's space"):
        shipped.parameters_of(base, override(run, {"recipe.epochs": 9}))
    with pytest.raises(ConfigError, match=r"token_mixer: the search's space does not have"):
        shipped.parameters_of(base, override(base, {KEY: "pooling"}))


def test_a_parameter_of_an_operation_is_there_only_with_it():
    key = f"{KEY}.query_key"
    space = {key: Choice(options=({"name": "depthwise", "norm": True, "kernel_size": Integer(low=3, high=7, step=2)},
                                  {"name": "linear", "expansion": Real(low=1.0, high=2.0)}))}  # fmt: skip
    seen = set()
    for _, parameters in (pair for pair, _ in zip(drawn(definition(space=space)), range(30), strict=False)):
        seen.add((parameters[key], *sorted(parameters.keys() - {key})))
    assert seen == {("depthwise", f"{key}[depthwise].kernel_size"), ("linear", f"{key}[linear].expansion")}


def test_an_option_that_changes_less_than_another_is_found_again():
    space = {"lr": Changes(options={"base": {}, "low": {"recipe.lr": 1e-4}, "both": {"recipe.lr": 1e-4, "seed": 7}})}
    found = definition(space=space, known={"low": {"recipe.lr": 1e-4}})
    base = found.base_run()
    for label, changes in (("base", {}), ("low", {"recipe.lr": 1e-4}), ("both", {"recipe.lr": 1e-4, "seed": 7})):
        assert found.parameters_of(base, override(base, changes)) == {"lr": label}
    with pytest.raises(ConfigError, match="does not have"):
        found.parameters_of(base, override(base, {"seed": 7}))


def test_a_search_is_whole_as_json():
    shipped = load_search("mixer").define()
    again = parse(Definition, json.loads(json.dumps(shipped.to_dict())))
    assert again == shipped and isinstance(again.space[KEY], Mixer)


@pytest.mark.parametrize(
    ("search", "line"),
    [
        ({"space": {"recipe.lrr": Real(low=0.1, high=1.0)}}, "no key 'lrr' here"),
        ({"space": {"recipe.lr": Real(low=0.1, high=1.0)}, "known": {"base": {}}}, "known 'base': recipe.lr"),
        ({"space": {"recipe.lr": 0.1}}, "nothing to choose from"),
        (
            {"space": {f"{KEY}.activation": Choice(options=("gelu", "gellu", "relu"))}},
            "activation: option 'gellu': none",
        ),
        (
            {"space": {"lr": Changes(options={"a": {"recipe.lr": 0.1}, "b": {"recipe.lrr": 0.2}})}},
            "lr: option 'b': none",
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
                    "lr": Changes(options={"a": {"recipe.lr": 0.1}, "b": {}}),
                }
            },
            "recipe.lr comes after recipe.lr",
        ),
    ],
)
def test_what_a_search_gets_wrong_is_one_line(search, line):
    with pytest.raises(ConfigError) as error:
        definition(**search)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("objectives=('top1', 'macs'), pruning=Pruning(),", "can't be pruned"),
        ("objectives=('macs',),", "'top1' first"),
        ("constraint={'macs': 1e6},", "unknown key 'constraint'"),
        ("known={'a': {'recipe.lr': 1.0}},", "known 'a': recipe.lr"),
    ],
)
def test_what_a_searchs_file_gets_wrong_is_one_line_with_its_place(tmp_path, text, line):
    file = write_search(tmp_path, more=text)
    with pytest.raises(ConfigError) as error:
        load_search(str(file)).define()
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("slots", "line"),
    [
        ({"activation": ("gelu", "gellu")}, "activation option 'gellu': no activation operation 'gellu'"),
        ({"coefficient_value": ("matmul",)}, "no query_key option fits"),
    ],
)
def test_a_mixer_is_looked_at_once_users_operations_are_known(slots, line):
    fitting = {"query": ("linear",), "query_key": ("depthwise",), "activation": ("gelu",)}
    fitting["coefficient_value"] = ("linear",)
    mixer = Mixer(**fitting | slots)
    with pytest.raises(ConfigError, match=line):
        definition(space={KEY: mixer, "recipe.lr": Real(low=0.1, high=1.0)})


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ('bases={"tiny": BASE}', "bases={}", "bases: dictionary should have at least 1 item"),
        ('bases={"tiny": BASE}', 'bases={"tiny": lambda: BASE}', "base 'tiny' must be a RunConfig, got function"),
        ("Choice(options=(3, 5))", "Integer(low=3, high=6, step=2)", "steps of 2 from low 3: take 7"),
    ],
)
def test_what_else_a_searchs_file_gets_wrong_is_one_line(tmp_path, before, after, line):
    file = write_search(tmp_path)
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(ConfigError) as error:
        load_search(str(file)).define()
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_search_needs_validation_images(tmp_path):
    with pytest.raises(ConfigError, match="validation images"):
        load_search(str(write_search(tmp_path))).define(overrides={"data.val_samples": 0})


def test_the_search_in_the_documents_is_one(tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "search.md").read_text()
    (tmp_path / "example.py").write_text(text.split("```python\n")[1].split("```")[0])
    example = load_search(str(tmp_path / "example.py")).define()
    costs = [example.costs(run)["macs"] for run, _ in (p for p, _ in zip(drawn(example), range(6), strict=False))]
    assert min(costs) < example.constraints["macs"], "nothing fits its limit"


# studies


def vanilla(path):
    return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))


@pytest.fixture
def journal(tmp_path):
    """A journal with one study of three trials."""
    path = tmp_path / "journal.log"
    study = optuna.create_study(storage=JournalStorage(Journal(path)), study_name="s")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    return path


def test_a_torn_last_line_is_cut_off_by_the_next_writer_with_a_backup(journal):
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"dead","stu')
    torn = journal.read_bytes()
    study = optuna.load_study(study_name="s", storage=JournalStorage(Journal(journal)))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert len(optuna.load_study(study_name="s", storage=vanilla(journal)).trials) == 4
    (backup,) = journal.parent.glob("journal.log.torn-*")
    assert backup.read_bytes() == torn


def test_what_another_writer_appended_to_a_torn_line_is_kept(journal):
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"dead","stu')
    for value in (1, 2):  # Optuna's own backend does not know better
        log = {"op_code": 2, "worker_id": "other", "study_id": 0, "user_attr": {f"kept{value}": value}}
        JournalFileBackend(str(journal)).append_logs([log])
    with pytest.raises(json.JSONDecodeError):
        vanilla(journal)
    assert Journal(journal).mend() == 1
    study = optuna.load_study(study_name="s", storage=vanilla(journal))
    assert study.user_attrs == {"kept1": 1, "kept2": 2} and len(study.trials) == 3
    assert Journal(journal).mend() == 0 and len(list(journal.parent.glob("journal.log.torn-*"))) == 1


def test_a_changed_search_is_refused_with_what_changed_and_more_trials_are_not(tmp_path, root):
    trials = begin(tmp_path, root)
    number = len(trials.all())
    trials = begin(tmp_path, root, wanted=9)
    assert trials.wanted == 9 and len(trials.all()) == number
    file = write_search(tmp_path)
    file.write_text(file.read_text().replace("high=1e-2", "high=2e-2").replace('macs": 3e5', 'macs": 4e5'))
    with pytest.raises(ConfigError) as error:
        create_study(root, load_search(str(file)).define(), None)
    assert "space.recipe.lr.high: 0.01 → 0.02" in str(error.value)
    assert "constraints.macs: 300000.0 → 400000.0" in str(error.value)
    with pytest.raises(ConfigError, match=r"base\.recipe\.epochs: 1 → 2"):
        create_study(root, override(load_search(str(write_search(tmp_path))).define(), {"base.recipe.epochs": 2}), None)
    with pytest.raises(ConfigError, match="a study does not move"):
        create_study(root, load_search(str(write_search(tmp_path))).define(), "postgresql://host/other")


def test_what_is_known_may_be_added_to_later(tmp_path, root, monkeypatch):
    monkeypatch.setattr(search_worker, "train", stand_in())
    more = 'objectives=("top1", "macs"), constraints={"macs": 3e5}, known={"base": {}MORE},'
    work(begin(tmp_path, root, wanted=2, more=more.replace("MORE", "")))
    added = more.replace("MORE", ', "relu": {f"{KEY}.activation": "relu", "recipe.lr": 2e-3}')
    trials = begin(tmp_path, root, wanted=4, more=added)
    trials = begin(tmp_path, root, wanted=4, more=added)  # twice is once
    assert [t.user_attrs["source"] for t in trials.all() if outcome(t) == "waiting"] == ["relu"]
    work(trials)
    assert {t.user_attrs["source"] for t in trials.all() if outcome(t) == "done"} == {"base", "relu", "sampler"}


def test_urls_of_databases():
    assert normal_url("postgresql://host/db") == "postgresql+psycopg://host/db"
    assert normal_url("postgresql+psycopg://me@/db?host=/run") == "postgresql+psycopg://me@/db?host=%2Frun"
    for url, line in (
        ("postgresql://me:secret@host/db", "password"),
        ("postgresql://me@host/db?password=secret", "password"),
        ("sqlite:///a.db", "a URL of PostgreSQL"),
        ("postgres://me@host/db", "a URL of PostgreSQL"),
        ("postgresql://host:port/db", "a URL of PostgreSQL"),
        ("here", "a URL"),
    ):
        with pytest.raises(ConfigError, match=line) as error:
            normal_url(url)
        assert "secret" not in str(error.value)


# workers


def test_what_costs_too_much_is_recorded_and_never_trained(tmp_path, root, monkeypatch):
    monkeypatch.setattr(search_worker, "train", stand_in())
    trials = begin(tmp_path, root, wanted=6)
    assert work(trials) == Nothing.FINISHED.value
    costly = [trial for trial in trials.all() if outcome(trial) == "too costly"]
    done = [trial for trial in trials.all() if outcome(trial) == "done"]
    assert costly and len(done) == 6
    for trial in costly:
        assert trial.user_attrs["macs"] > 3e5 and trial.constraints["macs"] > 0
        assert not (root / trial.user_attrs["hash"]).exists()
    assert all(trial.user_attrs["macs"] <= 3e5 and trial.values[1] == trial.user_attrs["macs"] for trial in done)
    assert done[0].user_attrs["source"] == "base"
    hashes = [trial.user_attrs["hash"] for trial in trials.all()]
    assert len(set(hashes)) == len(hashes), "a configuration was tried twice"


def test_a_constraint_out_of_reach_is_one_line(tmp_path, root, monkeypatch):
    monkeypatch.setattr("sweeps.search.trials.TOO_COSTLY", 3)
    trials = begin(tmp_path, root, more='objectives=("top1",), constraints={"params": 10},')
    with pytest.raises(ConfigError, match="3 proposals in a row cost more than params ≤ 10"):
        work(trials)


def test_a_small_space_is_tried_once_and_then_it_ends(root, monkeypatch):
    monkeypatch.setattr(search_worker, "train", stand_in())
    small = definition(space={f"{KEY}.activation": Choice(options=("gelu", "relu", "silu"))})
    create_study(root, small, None)
    trials = Trials(root, search_folder(root, small.label), Owner.here("me"))
    trials.prepare(10)
    assert work(trials) == Nothing.EXHAUSTED.value
    assert sorted(trial.params[f"{KEY}.activation"] for trial in trials.all()) == ["gelu", "relu", "silu"]


def test_sizes_that_do_not_fit_are_no_trials(root, monkeypatch):
    """Heads of 6 or 7 channels divide no width: that shows only when the network is built."""
    monkeypatch.setattr(search_worker, "train", stand_in())
    attention = {"query": "linear", "activation": "softmax", "coefficient_value": "matmul"}
    key = {"name": "scaled_dot", "head_dim": Integer(low=4, high=8)}
    found = definition(space={KEY: {**attention, "query_key": key}})
    create_study(root, found, None)
    trials = Trials(root, search_folder(root, found.label), Owner.here("me"))
    trials.prepare(10)
    assert work(trials) == Nothing.EXHAUSTED.value
    assert sorted(trial.params[f"{KEY}.query_key.head_dim"] for trial in trials.all()) == [4, 8]


def test_a_run_that_diverges_has_finished_without_values(tmp_path, root, monkeypatch):
    monkeypatch.setattr(search_worker, "train", stand_in(diverges=lambda config: config.recipe.lr > 2e-3))
    trials = begin(tmp_path, root, wanted=8)
    work(trials)
    by_outcome = {name: [t for t in trials.all() if outcome(t) == name] for name in ("failed", "done")}
    assert by_outcome["failed"] and len(by_outcome["failed"]) + len(by_outcome["done"]) == 8
    assert all(trial.params["recipe.lr"] > 2e-3 and trial.values is None for trial in by_outcome["failed"])
    assert "not a number" in by_outcome["failed"][0].user_attrs["error"]
    assert not {trial.number for trial in trials.study.best_trials} & {trial.number for trial in by_outcome["failed"]}


def test_accuracy_alone_is_pruned_by_the_median(tmp_path, root, monkeypatch):
    monkeypatch.setattr(search_worker, "train", stand_in())
    trials = begin(tmp_path, root, wanted=12, epochs=3, more=ALONE)
    work(trials)
    done = [trial for trial in trials.all() if outcome(trial) == "done"]
    pruned = [trial for trial in trials.all() if outcome(trial) == "pruned"]
    assert len(done) + len(pruned) == 12 and pruned
    for trial in pruned:  # against the rule itself: below the median of those before it at its last epoch
        epoch = max(trial.intermediate_values)
        earlier = sorted(t.intermediate_values[epoch] for t in done if t.number < trial.number)
        middle = len(earlier) // 2
        median = earlier[middle] if len(earlier) % 2 else (earlier[middle - 1] + earlier[middle]) / 2
        assert trial.intermediate_values[epoch] < median and epoch < 3 and len(earlier) >= 2
    assert trials.study.best_trial.number in {trial.number for trial in done}


def all_compete(tmp_path, root, number):
    """How several workers end; not forks of this process, whose libraries may hold locks in other threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sweeps.search.worker"])
    workers = [context.Process(target=compete, args=(tmp_path, root, each, 0.3)) for each in range(number)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(240)
        process.kill()  # if it hangs
        process.join()
    return [process.exitcode for process in workers]


def compete(tmp_path, root, number, seconds):
    """Body of one of several workers that train in no time."""
    trained = stand_in()

    def slow(*arguments):
        time.sleep(random.Random(os.getpid()).uniform(0, seconds))
        return trained(*arguments)

    search_worker.train = slow
    name = f"worker-{number}"
    folder = search_folder(root, "tiny@tiny")
    with worker_folder(folder, name).lock():
        work(Trials(root, folder, Owner.here(name)))


def test_several_workers_finish_exactly_what_was_asked_for(tmp_path, root):
    trials = begin(tmp_path, root, wanted=10)
    assert all_compete(tmp_path, root, 4) == [0] * 4
    finished = [trial for trial in trials.all() if has_finished(trial)]
    assert len(finished) == 10 and {outcome(trial) for trial in trials.all()} <= {"done", "too costly"}
    assert len({trial.user_attrs["owner"]["name"] for trial in finished if trial.user_attrs["owner"]}) > 1


def test_a_dead_workers_trial_is_failed_and_waits_again_until_it_has_killed_three(tmp_path, root, monkeypatch):
    monkeypatch.setattr(search_worker, "train", stand_in())
    mine = begin(tmp_path, root, wanted=3)
    folder = mine.folder
    for death in range(3):
        victim = Trials(root, folder, Owner.here(f"victim-{death}"))
        with worker_folder(folder, f"victim-{death}").lock():
            claim = victim.claim()
            assert isinstance(claim, Claim) and claim.config == victim.base  # the known one, each time
            mine.bury()
            assert mine.all()[claim.number].state == TrialState.RUNNING, "it lives"
        mine.bury()
        mine.bury()  # twice is once
    found = mine.all()
    assert [outcome(trial) for trial in found] == ["lost", "lost", "failed"]
    assert [trial.user_attrs.get("again") for trial in found] == [None, 0, 1]
    assert "3 times" in found[2].user_attrs["error"]
    work(mine)
    assert sum(map(has_finished, mine.all())) == 3


@pytest.mark.parametrize("ends", ["fail", "finish", "release"])
def test_a_kill_while_a_trial_is_given_back_or_ends_leaves_nothing_of_it(tmp_path, root, monkeypatch, ends):
    monkeypatch.setattr(search_worker, "train", stand_in())
    dying = begin(tmp_path, root, wanted=1, owner="dying")
    claim, arguments = dying.claim(), {"fail": ["boom"], "finish": [{"val_top1": 1.0}], "release": []}[ends]

    def kill(*_, **__):
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(dying.study, "tell", kill)
        patch.setattr(dying._storage, "set_trial_state_values", kill)
        getattr(dying, ends)(claim, *arguments)
    other = Trials(root, dying.folder, Owner.here("other"))
    other.bury()
    lost, waiting = other.all()
    assert outcome(lost) == "lost" and outcome(waiting) == "waiting"
    assert not {"trained", "error", "owner"} & waiting.user_attrs.keys() and "failed" not in waiting.constraints
    work(other)
    assert outcome(other.all()[1]) == "done" and other.study.best_trials[0].number == 1


def test_a_worker_of_a_job_is_dead_when_slurm_says_so_and_not_before(tmp_path, root, monkeypatch):
    from sweeps import scheduler

    trials = begin(tmp_path, root)
    Trials(root, trials.folder, Owner.here("theirs", job="7_1")).claim()
    for answer, dead in (
        (scheduler.Answer({"7_1": scheduler.Job("RUNNING")}), False),
        (scheduler.Answer({"7_1": scheduler.Job("PENDING")}), False),  # requeued: it comes back
        (scheduler.Answer({}, "squeue gave no answer in 15 s"), False),
        (scheduler.Answer({"7_1": scheduler.Job("NODE_FAIL")}), True),
    ):
        monkeypatch.setattr(scheduler, "ask", lambda numbers, answer=answer: answer)
        trials.bury()
        assert (outcome(trials.all()[0]) == "lost") == dead
    again = Trials(root, trials.folder, Owner.here("mine", job="7_2"))
    assert again.claim().config == trials.base


def test_a_worker_that_slurm_starts_again_goes_on_with_its_own_trial(tmp_path, root):
    trials = begin(tmp_path, root)
    first = Trials(root, trials.folder, Owner.here("w", job="7_1")).claim()
    second = Trials(root, trials.folder, Owner.here("w", job="7_1")).claim()
    assert first.number == second.number and len(trials.all()) == 1


def test_a_worker_that_is_told_to_go_leaves_its_trial_to_another_that_goes_on_from_its_checkpoint(tmp_path, root):
    trials = begin(tmp_path, root, wanted=1, epochs=3)
    stop = Stop()
    leaving = Worker(trials, stop, "cpu", workers=0)
    (trained, calls) = (search_worker.train, [])

    def told_in_the_first_epoch(*arguments):
        *rest, after_epoch = arguments

        def after(row):
            calls.append(row["epoch"])
            stop()
            after_epoch(row)

        return trained(*rest, after)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_worker, "train", told_in_the_first_epoch)
        assert leaving.work() == "stopped"
    assert calls == [1] and [outcome(trial) for trial in trials.all()] == ["waiting"]
    other = Trials(root, trials.folder, Owner.here("other"))
    work(other)
    (trial,) = trials.all()
    rows = metrics(root / trial.user_attrs["hash"])
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    whole = train(trials.base, tmp_path / "whole", "cpu")
    times = ("seconds", "images_per_second")
    expected = [{k: v for k, v in row.items() if k not in times} for row in metrics(tmp_path / "whole")]
    assert [{k: v for k, v in row.items() if k not in times} for row in rows] == expected
    assert trial.values[0] == top1(rows[-1]) and whole["state"] == "done"


def test_finished_runs_in_the_space_are_trials_and_are_not_trained_again(tmp_path, root):
    loaded = load_search(str(write_search(tmp_path))).define()
    base = loaded.base_run()
    inside = override(base, {f"{KEY}.activation": "relu"})
    for config in (inside, override(inside, {"seed": 1}), override(base, {f"{KEY}.activation": "sigmoid"})):
        train(config, root / digest(config), "cpu")
    begun = root / digest(base)
    RunFolder(begun).create(base)  # begun is not finished
    before = (root / digest(inside) / "result.json").stat().st_mtime_ns
    create_study(root, loaded, None)
    trials = Trials(root, search_folder(root, loaded.label), Owner.here("me"))
    assert trials.prepare(2) == 1 and trials.prepare(2) == 0
    known, waiting = trials.all()
    assert known.params[f"{KEY}.activation"] == "relu" and outcome(waiting) == "waiting"
    assert known.values[0] == top1(metrics(root / digest(inside))[-1])
    work(trials)
    assert [outcome(trial) for trial in trials.all()] == ["done", "done"]
    assert (root / digest(inside) / "result.json").stat().st_mtime_ns == before


def test_a_run_that_was_stopped_between_two_epochs_goes_on(tmp_path):
    def leave(row):
        raise Interrupted("enough")

    with pytest.raises(Interrupted):
        train(RUN, tmp_path / "run", "cpu", after_epoch=leave)
    assert RunFolder(tmp_path / "run").read("progress.json")["state"] == "interrupted"
    seen = []
    assert train(RUN, tmp_path / "run", "cpu", after_epoch=seen.append)["state"] == "done"
    assert [row["epoch"] for row in seen] == [2, 3]


def test_no_trial_is_taken_where_the_base_could_not_be_trained(tmp_path, root):
    file = write_search(tmp_path)
    data = {"data.name": "folder", "data.root": str(tmp_path / "none"), "data.train_samples": None}
    loaded = load_search(str(file)).define(overrides=data)
    create_study(root, loaded, None)
    for worker in range(4):  # three of them would fail a trial
        trials = Trials(root, search_folder(root, loaded.label), Owner.here(f"w{worker}"))
        trials.prepare(2)
        with pytest.raises(ConfigError, match="no such folder"):
            work(trials)
    assert [outcome(trial) for trial in trials.all()] == ["waiting"]
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="finds no GPU here"):
            Worker(begin(tmp_path, root), Stop(), "cuda").work()


def test_missing_data_ends_the_worker_and_costs_no_trial(tmp_path, root, monkeypatch):
    def without_data(*arguments):
        raise ConfigError("no images here")

    trials = begin(tmp_path, root, wanted=1)
    monkeypatch.setattr(search_worker, "train", without_data)
    with pytest.raises(ConfigError, match="no images here"):
        work(trials)
    assert [outcome(trial) for trial in trials.all()] == ["lost", "waiting"]
    monkeypatch.setattr(search_worker, "train", stand_in())
    work(trials)
    assert [outcome(trial) for trial in trials.all()] == ["lost", "done"]


def test_a_configuration_that_its_data_refuse_fails_alone_and_at_once(tmp_path, root):
    sizes = Choice(options=(RUN.recipe.batch_size, 4096))
    found = definition(space={"recipe.batch_size": sizes}, known={"large": {"recipe.batch_size": 4096}})
    create_study(root, found, None)
    trials = Trials(root, search_folder(root, found.label), Owner.here("me"))
    trials.prepare(2)
    assert work(trials) == Nothing.FINISHED.value
    large, base = trials.all()
    assert outcome(large) == "failed" and "fewer than one batch of 4096: lower" in large.user_attrs["error"]
    assert outcome(base) == "done" and base.params["recipe.batch_size"] == RUN.recipe.batch_size


def test_a_line_of_metrics_that_a_kill_tore_costs_no_earlier_row(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metrics({"epoch": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "val_')
    assert metrics(tmp_path) == [{"epoch": 1}] and metrics(tmp_path / "none") == []


@pytest.mark.parametrize("left", ['{"epoch": 1, "val_top1": 50.0}\n{"epoch": 2, "val_', ""])
def test_a_finished_run_without_its_last_metrics_gives_no_top1_and_ends_no_worker(tmp_path, root, monkeypatch, left):
    def trained(config, path, *others):
        (path / "metrics.jsonl").write_text(left)
        RunFolder(path).write("result.json", {"state": "done", "parameters": 1, "macs": 1})
        return {"state": "done"}

    monkeypatch.setattr(search_worker, "train", trained)
    trials = begin(tmp_path, root, wanted=1, epochs=2)
    work(trials)
    (trial,) = trials.all()
    assert outcome(trial) == "failed" and "no row of its last epoch" in trial.user_attrs["error"]
    assert finished_runs(root, trials.definition, trials.base) == []


def test_a_confirming_grid_overwrites_no_other_file(tmp_path, root, monkeypatch):
    monkeypatch.setattr(search_worker, "train", stand_in())
    trials = begin(tmp_path, root, wanted=2)
    work(trials)
    path = tmp_path / "confirm_tiny.py"
    written = write_confirming_grid(trials, 1, (1, 2), path).read_text()
    assert write_confirming_grid(trials, 1, (1, 2), path).read_text() == written  # the same again is no loss
    with pytest.raises(ConfigError, match="another file stands there: name one with --out"):
        write_confirming_grid(trials, 1, (1, 2, 3), path)
    assert path.read_text() == written
    assert "(1, 2, 3)" in write_confirming_grid(trials, 1, (1, 2, 3), tmp_path / "new" / "other.py").read_text()
