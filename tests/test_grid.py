"""Grids and plans: what is expanded, what is missing, and that planning writes nothing."""

import json
import textwrap
from dataclasses import replace

import pytest
import torch
from small import RUN

from analysis.frame import load
from metamixer import ConfigError, differences, digest, override
from metamixer.branches import token_range
from metamixer.mixer import resolve_mixer
from metamixer.operation import REGISTRY
from metamixer.plugins import code_digest
from metamixer.training.folder import RunFolder
from metamixer.training.provenance import PACKAGE
from sweeps import Grid, State, Variant, grid_questions, load_grid, make_plan
from sweeps.grid import LoadedGrid, data_label, undeclared
from sweeps.plan_table import print_plan

KEY = "model.stages.*.token_mixer.activation"
GRID = Grid(
    bases={"tiny": RUN, "long": RUN},
    base="gelu",
    variants={
        "gelu": Variant(),
        "relu": Variant(changes={KEY: "relu"}),
        "relu_fast": Variant(on="relu", changes={"recipe.lr": 5e-3}),
    },
    seeds=(0, 1),
)
LOADED = LoadedGrid("test", "Why?", GRID)


def test_variants_build_on_each_other():
    runs = {(run.variant, run.seed): run for run in GRID.runs()}
    assert len(runs) == 6 and len({run.hash for run in runs.values()}) == 6
    assert runs["gelu", 0].config == RUN
    changed = differences(RUN, runs["relu_fast", 1].config)
    activations = {f"model.stages.{i}.token_mixer.activation.name": ("gelu", "relu") for i in range(4)}
    assert changed == {**activations, "recipe.lr": (RUN.recipe.lr, 5e-3), "seed": (0, 1)}
    assert all(run.hash == digest(run.config) for run in runs.values())


def test_overrides_come_before_the_variants():
    runs = {run.variant: run.config for run in GRID.runs(overrides={"recipe.lr": 1e-4}, seeds=[3])}
    assert runs["gelu"].recipe.lr == 1e-4 and runs["relu_fast"].recipe.lr == 5e-3 and runs["gelu"].seed == 3


def test_only_some_variants():
    assert {run.variant for run in GRID.runs(only=["relu_fast"])} == {"relu_fast"}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: GRID.runs("imagenet"), "no data 'imagenet'; there are tiny, long"),
        (lambda: GRID.runs(only=["tanh"]), "no variant 'tanh'; there are gelu, relu, relu_fast"),
        (lambda: GRID.runs(overrides={"recipe.speed": 1}), "no key 'speed'"),
        (lambda: Grid(bases={"a": RUN}, base="x", variants={"a": Variant()}), "base 'x' is not a variant"),
        (lambda: Grid(bases={"a": RUN}, base="a", variants={"a": Variant(on="b")}), "on 'b', which is not"),
        (lambda: Grid(bases={"a": RUN}, base="a", variants={"a": Variant(on="a")}), "built on itself"),
        (lambda: GRID.runs(seeds=[0, 2, 0]), "seed 0 is given twice"),
        (lambda: GRID.runs(overrides={"seed": 5}), "a grid runs with each of its seeds: give --seeds"),
        (
            lambda: Grid(bases={"a": RUN}, base="a", variants={"a": Variant(changes={"seed": 1})}),
            "variant 'a' changes seed",
        ),
        (
            lambda: load_grid("ffnifcation"),
            r"no grid 'ffnifcation'; did you mean 'ffnification'",
        ),
        (lambda: load_grid("nothing"), r"no grid 'nothing'; there are .*ffnification, .*or give a file's path"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_broken_variant_is_named():
    grid = Grid(bases={"a": RUN}, base="a", variants={"a": Variant(), "b": Variant(changes={KEY: "softmax"})})
    with pytest.raises(ConfigError, match=r"variant 'b': .*'softmax'"):
        grid.runs()


def test_a_users_operation_that_fails_is_a_line_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setitem(REGISTRY, "activation", dict(REGISTRY["activation"]))
    operation = """
        from metamixer import Activation, register
        @register
        class Typo(Activation):
            name = "typo"
            def forward(self, scores):
                return scores.rleu()
        """
    (tmp_path / "my_op.py").write_text(textwrap.dedent(operation))
    variants = {"a": Variant(), "b": Variant(changes={KEY: "typo"})}
    grid = Grid(bases={"a": RUN}, base="a", variants=variants, modules=(str(tmp_path / "my_op.py"),))
    for match in ("none", "macs"):
        with pytest.raises(ConfigError, match=rf"^variant 'b': {tmp_path}/my_op\.py:7: AttributeError: .*rleu"):
            print_plan(make_plan(LoadedGrid("mine", "?", grid), tmp_path / "runs", match=match))


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1", "no grid in it: assign one to GRID"),
        ("import nothing_like_this", r"file\.py:1: ModuleNotFoundError: No module named"),
        ("\n{}['gelu']", r"file\.py:2: KeyError: 'gelu'"),
        ("\nGRID = Grid(", r"file\.py:2: SyntaxError: "),
        ("\nfrom sweeps import Grid\nGRID = Grid(bases={}, variant={})", r"file\.py:3: "),
    ],
)
def test_a_broken_grid_file_says_where(tmp_path, text, message):
    (tmp_path / "file.py").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_grid(str(tmp_path / "file.py"))
    assert "\n" not in str(caught.value)


def test_a_grid_from_a_file_anywhere(tmp_path):
    (tmp_path / "mine.py").write_text(
        textwrap.dedent('''
        """Does ReLU do?

        More about it.
        """
        from small import RUN
        from sweeps import Grid, Variant
        GRID = Grid(bases={"tiny": RUN}, base="a", variants={"a": Variant()})
        ''')
    )
    loaded = load_grid(str(tmp_path / "mine.py"))
    assert (loaded.name, loaded.question) == ("mine", "Does ReLU do?")


@pytest.mark.parametrize("name", list(grid_questions()))
def test_every_shipped_grid_plans_on_all_its_data(name, tmp_path, monkeypatch):
    from test_recipes import finished

    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "runs", "small_teacher")  # which one of them builds on
    tmp_path = tmp_path / "nothing"
    tmp_path.mkdir()
    loaded = load_grid(name)
    assert loaded.question.endswith("?") or "." in loaded.question
    for number, data in enumerate(loaded.grid.bases):
        plan = make_plan(loaded, tmp_path, data, **({"match": "none"} if number else {}))  # matching takes seconds
        assert plan.count() == {State.NEW: len(plan.runs)}
        assert len({run.hash for run in plan.runs}) == len(plan.runs), "two variants are the same run"
    assert not any(tmp_path.iterdir())


def test_a_grid_whose_teacher_is_not_trained_says_so_only_where_it_is_needed(tmp_path, monkeypatch):
    from test_recipes import finished

    monkeypatch.chdir(tmp_path)
    loaded = load_grid("recipe_ingredients", root=tmp_path / "runs")
    assert make_plan(loaded, tmp_path / "runs", "imagenet").runs
    with pytest.raises(ConfigError, match=r"builds on recipe 'small_teacher'.*launch.py train small_teacher"):
        make_plan(loaded, tmp_path / "runs", "fashion-mnist")
    own = finished(tmp_path / "elsewhere", "small_teacher")
    plan = make_plan(loaded, tmp_path / "runs", "fashion-mnist", {"recipe.distillation.teacher": str(own)})
    teachers = {run.variant: run.config.recipe.distillation for run in plan.runs}
    assert [name for name, teacher in teachers.items() if teacher is None] == ["no_distillation"]
    assert teachers["full"].teacher == str(own)


def test_a_grid_builds_on_the_runs_of_the_folder_that_is_named(tmp_path):
    """Not on those of `runs` in the current folder."""
    from test_recipes import finished

    own = finished(tmp_path / "elsewhere", "small_teacher")
    loaded = load_grid("recipe_ingredients", root=tmp_path / "elsewhere")
    (run,) = make_plan(loaded, tmp_path / "elsewhere", "fashion-mnist", only=["full"], seeds=[0]).runs
    assert run.config.recipe.distillation.teacher == str(own)


def test_variants_that_are_left_out_are_named(tmp_path, capsys):
    loaded = load_grid("ffnet_recipe", root=tmp_path)
    print_plan(make_plan(loaded, tmp_path, only=["ffnet_1"]))
    said = " ".join(capsys.readouterr().out.split())
    assert "left out: ffnet_4_384: recipe 'ffnet_4_384' builds on recipe 'ffnet_4', which has no finished run" in said
    with pytest.raises(ConfigError, match=r"'ffnet_4_384' is left out: .*builds on recipe 'ffnet_4'"):
        make_plan(loaded, tmp_path, only=["ffnet_4_384"])


def test_a_grid_may_import_a_file_beside_it(tmp_path):
    for place, activation in (("one", "relu"), ("two", "silu")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "shared.py").write_text(f"ACTIVATION = '{activation}'\n")
        (tmp_path / place / "mine.py").write_text(
            "from shared import ACTIVATION\nfrom small import RUN\nfrom sweeps import Grid, Variant\n"
            f"GRID = Grid(bases={{'a': RUN}}, base='a', variants={{'a': Variant(changes={{{KEY!r}: ACTIVATION}})}})\n"
        )
        run = load_grid(str(tmp_path / place / "mine.py")).grid.runs()[0].config
        assert run.model.stages[0].token_mixer.activation.name == activation


MIXER = "model.stages.*.token_mixer"
CONV = {"name": "depthwise", "kernel_size": 3, "norm": True}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({f"{MIXER}.query_key.kernel_size": 7}, []),
        ({f"{MIXER}.query_key": CONV | {"kernel_size": 7}}, []),
        # what the dict does not say goes back to its default
        ({f"{MIXER}.query_key": {"name": "depthwise", "kernel_size": 7}}, [f"{MIXER}.query_key.norm: True → False"]),
        ({f"{MIXER}.query_key": {"name": "linear", "expansion": 1.0}}, []),
        ({MIXER: {"name": "pooling"}}, []),
        ({"model.stages.2.token_mixer": "attention"}, []),
        ({KEY: "relu", "recipe.lr": 1e-4}, []),
        ({"model.norm": "batch", "recipe.warmup_epochs": 0}, []),
    ],
)
def test_what_a_variant_changes_without_saying_so(changes, expected):
    base = override(RUN, {f"{MIXER}.query_key": CONV, f"{MIXER}.coefficient_value": CONV})
    assert undeclared(base, override(base, changes), changes) == expected


HELD = override(RUN, {f"{MIXER}.query_key": CONV, f"{MIXER}.coefficient_value": CONV})
WIDER = {f"{MIXER}.query_key": {"name": "depthwise", "kernel_size": 5}}


def beside(*variants):
    """A grid of a base and variants that build on it."""
    made = {"base": Variant(), **{f"v{i}": variant for i, variant in enumerate(variants)}}
    return LoadedGrid("beside", "Why?", Grid(bases={"a": HELD}, base="base", variants=made, seeds=(0,)))


def test_variants_that_change_more_than_they_declare_are_refused_a_line_for_each(tmp_path, capsys):
    """`also` gives the reason, which plans and tables show."""
    named = {**WIDER, f"{MIXER}.query_key": {"name": "depthwise", "kernel_size": 5, "norm": False}}
    loaded = beside(
        Variant(changes=WIDER), Variant(changes=named), Variant(changes=WIDER, on="v1"), Variant(changes=WIDER)
    )
    with pytest.raises(ConfigError) as caught:
        make_plan(loaded, tmp_path)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [f"variant 'v{i}' changes more than it declares" for i in (0, 3)]
    assert f"{MIXER}.query_key.norm: True → False; name this in `changes`, or say why in `also`" in lines[0]
    plan = make_plan(beside(Variant(changes=WIDER, also="a norm hides it")), tmp_path)
    print_plan(plan)
    assert "note: v0: it changes more than it names: a norm hides it" in " ".join(capsys.readouterr().out.split())
    plan.write_manifest()
    assert "v0 changes more than it names: a norm hides it" in load(tmp_path, "beside", "a")[1].mixed


def test_a_plan_shows_what_rates_cost_and_how_variants_start(tmp_path, capsys):
    loaded = beside(Variant(changes={KEY: "relu"}))
    plan = make_plan(loaded, tmp_path, seeds=[0, 1, 2], lrs=[1e-3, 1e-4])
    print_plan(plan)
    shown = capsys.readouterr().out
    assert "18 runs: 18 new" in shown
    low, high = token_range(HELD.build(), HELD.data.input_size)
    (row,) = (line for line in shown.splitlines() if line.startswith("base "))
    assert f" {low:.2g}–{high:.2g} " in row and "9 new" in row


def test_a_plan_says_which_variant_starts_too_large(tmp_path, capsys):
    """Products of three maps, `pointwise`, start at tens of times their input; on digits they then learn nothing."""
    for ratio, said in ((None, True), (0.5, False)):
        plan = make_plan(load_grid("ffnification"), tmp_path, "digits", {"recipe.branch_ratio": ratio}, seeds=[0])
        run = next(run for run in plan.runs if run.variant == "pointwise")
        high = token_range(run.config.build(), run.config.data.input_size)[1]
        print_plan(plan)
        shown = " ".join(capsys.readouterr().out.split())
        assert (f"note: pointwise: a branch starts at {high:.2g} times its input, and may not train" in shown) == said
        assert shown.count("may not train") == said and (high > 20) == said


def test_a_plan_says_that_a_variant_changes_model_and_recipe(tmp_path, capsys):
    print_plan(make_plan(beside(Variant(changes={KEY: "relu", "recipe.epochs": 4})), tmp_path))
    assert "note: v0: it changes model and recipe at once" in " ".join(capsys.readouterr().out.split())


def test_each_rung_of_the_ladder_changes_one_slot_or_one_parameter_until_ffnets_mixer_is_there():
    """All but `pointwise`, which says why."""
    runs = {run.variant: run for run in load_grid("ffnification").grid.runs(seeds=[0], match="none", lrs=[])}
    for name, run in runs.items():
        if (on := run.declared.on) is None or run.declared.also is not None:
            continue
        changed = {key.split("token_mixer.")[1] for key in differences(runs[on].config, run.config)}
        slots, parameters = ({key.split(".")[part] for key in changed if "." in key} for part in (0, -1))
        assert len(slots) == 1 or len(parameters) == 1, f"{name}: {sorted(changed)}"
    assert [name for name, run in runs.items() if run.declared.also] == ["pointwise"]
    last = runs["parallel_branch"].config.model.stages[0].token_mixer
    assert last == resolve_mixer("ffnified_attention")


def test_kernel_size_changes_nothing_but_the_kernel():
    runs = {run.variant: run.config for run in load_grid("kernel_size").grid.runs("fashion-mnist", seeds=[0])}
    changed = differences(runs["k3"], runs["k13"])
    assert {key.rsplit(".", 1)[1] for key in changed} == {"kernel_size"} and len(changed) == 8
    assert all(run.warnings() == [] for name, run in runs.items() if name != "k9" and name != "k13")


def test_states_follow_the_folders(tmp_path):
    plan = make_plan(LOADED, tmp_path)
    first, second, third, fourth = plan.runs[:4]
    for run in (first, second, third, fourth):
        RunFolder(plan.root / run.hash).create(run.config)
    RunFolder(plan.root / first.hash).write("result.json", {"state": "done"})
    RunFolder(plan.root / second.hash).fail("the loss is not a number in epoch 1", 1)
    RunFolder(plan.root / third.hash).write("progress.json", {"epoch": 1})
    with RunFolder(plan.root / fourth.hash).lock():
        states = make_plan(LOADED, tmp_path).states
    expected = [State.DONE, State.FAILED, State.INTERRUPTED, State.RUNNING, State.NEW, State.NEW]
    assert [states[run.hash] for run in plan.runs] == expected
    plan = make_plan(LOADED, tmp_path)  # the fourth let go without having begun
    assert [run.hash for run in plan.missing()] == [run.hash for run in plan.runs[2:]]
    assert [run.hash for run in plan.missing(retry=True)] == [run.hash for run in plan.runs[1:]]


def test_finished_runs_of_other_code_are_named_and_trained_again_on_demand(tmp_path, capsys):
    """What they were stays in `replaced/`."""
    plan = make_plan(LOADED, tmp_path)
    now = {"backbone.py": code_digest(PACKAGE / "backbone.py"), "rng.py": code_digest(PACKAGE / "rng.py")}
    for run, code in zip(plan.runs, (now, {**now, "rng.py": "0" * 16}), strict=False):
        RunFolder(plan.root / run.hash).create(run.config)
        RunFolder(plan.root / run.hash).write("result.json", {"state": "done", "code": code, "top1": 50.0})
    plan = make_plan(LOADED, tmp_path)
    old = plan.runs[1]
    assert plan.changed == {old.hash: ["rng.py"]} and old not in plan.missing()
    print_plan(plan)
    assert "1 finished runs were trained by other code (rng.py); `run --retrain`" in capsys.readouterr().out
    again = replace(plan, retrain=True)
    assert {run.hash for run in again.missing()} - {run.hash for run in plan.missing()} == {old.hash}
    again.put_aside()
    assert make_plan(LOADED, tmp_path).states[old.hash] == State.NEW
    (kept,) = (tmp_path / "replaced").iterdir()
    assert kept.name.startswith(old.hash) and RunFolder(kept).result()["top1"] == 50.0


def test_two_variants_that_are_the_same_run_are_trained_once(tmp_path):
    grid = Grid(bases={"a": RUN}, base="a", variants={"a": Variant(), "again": Variant()}, seeds=(0, 1))
    plan = make_plan(LoadedGrid("aa", "Is it the same?", grid), tmp_path)
    assert len(plan.runs) == 4 and [run.seed for run in plan.missing()] == [0, 1]


def test_the_manifest_lists_the_runs(tmp_path):
    plan = make_plan(LOADED, tmp_path, "tiny", {"recipe.epochs": 2})
    plan.write_manifest()
    manifest = json.loads((tmp_path / "grids" / "test@tiny+recipe.epochs=2.json").read_text())
    assert manifest["base"] == "gelu" and len(manifest["runs"]) == 6
    last = plan.runs[-1]
    assert manifest["runs"][-1] == {
        "hash": last.hash, "variant": "relu_fast", "seed": 1, "on": "relu", "changes": {"recipe.lr": 5e-3},
        "origin": last.origin,
    }  # fmt: skip


def listed(root, grid=GRID, data=None, **chosen):
    """The runs that the manifest holds after a launch, by variant."""
    plan = make_plan(LoadedGrid("test", "Why?", grid), root, data, **chosen)
    plan.write_manifest()
    rows = json.loads(plan.manifest_path.read_text())["runs"]
    return {
        name: [row["hash"] for row in rows if row["variant"] == name] for name in {row["variant"]: 0 for row in rows}
    }


def test_a_launch_of_some_variants_leaves_the_others_in_the_table(tmp_path):
    """Unless the grid no longer has them, or has them in another form."""
    all_of = listed(tmp_path)
    assert list(all_of) == ["gelu", "relu", "relu_fast"]
    assert listed(tmp_path, only=["relu"]) == all_of
    more = listed(tmp_path, only=["relu_fast"], seeds=[0, 1, 2])
    assert {name: len(hashes) for name, hashes in more.items()} == {"gelu": 2, "relu": 2, "relu_fast": 3}
    edited = GRID.model_copy(update={"variants": {**GRID.variants, "relu": Variant(changes={KEY: "silu"})}})
    assert list(listed(tmp_path, edited, only=["gelu"])) == ["gelu"]  # `relu_fast` builds on the other
    listed(tmp_path)
    longer = GRID.model_copy(update={"bases": {"tiny": override(RUN, {"recipe.epochs": 4})}})
    assert list(listed(tmp_path, longer, only=["gelu"])) == ["gelu"]
    assert list(listed(tmp_path, only=["gelu"], lrs=[5e-4])) == ["gelu"]
    assert len(listed(tmp_path, seeds=[5])["relu"]) == 1


def test_data_labels_are_file_names():
    assert data_label("digits", {}) == "digits"
    long = data_label("digits", {f"model.stages.{i}.token_mixer": {"name": "identity"} for i in range(4)})
    assert "/" not in long and len(long) < 80
    assert long != data_label("digits", {f"model.stages.{i}.token_mixer": {"name": "pooling"} for i in range(4)})


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "runs").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match="cannot write"):
        RunFolder(tmp_path / "runs" / "x").create(RUN)


def test_every_variant_runs_at_every_rate_of_a_set():
    grid = Grid(bases=GRID.bases, base="gelu", variants={k: GRID.variants[k] for k in ("gelu", "relu")}, seeds=(0, 1))
    own = RUN.recipe.lr
    runs = grid.runs(lrs=[1e-3, own])
    assert len(runs) == 2 * 2 * 2 and len({run.hash for run in runs}) == 8
    for run in runs:
        assert run.config.recipe.lr == run.lr and run.fixed == (run.lr == own)
        assert run.hash == digest(run.config)
    alone = {run.hash for run in grid.runs()}
    assert alone == {run.hash for run in runs if run.fixed}  # what was run before counts
    assert {run.name for run in runs if run.seed == 1 and run.variant == "relu"} == {
        "relu seed 1 at 0.001", f"relu seed 1 at {own:g}"
    }  # fmt: skip
    kept = grid.model_copy(update={"lrs": (1e-3,)})
    assert [run.hash for run in kept.runs()] == [run.hash for run in grid.runs(lrs=[1e-3])]
    assert [run.hash for run in kept.runs(lrs=[])] == [run.hash for run in grid.runs()]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "variant 'relu_fast' changes recipe.lr, which a set of learning rates sets for all"),
        ({"data.val_samples": 0}, "chosen from on validation data: give data.val_samples"),
        ({"recipe.min_lr": 2e-3}, "variant 'gelu': .*min_lr 0.002 must not exceed lr 0.001"),
    ],
)
def test_rates_that_can_not_be_compared_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        GRID.runs(overrides=changes, lrs=[1e-3])


def test_an_aa_test_is_the_base_twice_with_other_seeds(tmp_path):
    plan = make_plan(LOADED, tmp_path, "tiny", seeds=[0, 2], aa=True)
    base = {run.seed: run.hash for run in GRID.runs(seeds=[0, 2, 1, 3]) if run.variant == "gelu"}
    found = [(run.variant, run.seed, run.pair, run.hash) for run in plan.runs]
    assert found == [
        ("gelu", 0, None, base[0]), ("gelu", 2, None, base[2]),
        ("gelu_again", 1, 0, base[1]), ("gelu_again", 3, 2, base[3]),
    ]  # fmt: skip
    plan.write_manifest()
    manifest = json.loads((tmp_path / "grids" / "test_aa@tiny.json").read_text())
    assert manifest["aa"] and manifest["grid"] == "test_aa" and manifest["base"] == "gelu"
    assert [entry.get("pair") for entry in manifest["runs"]] == [None, None, 0, 2]
    with pytest.raises(ConfigError, match="leave out --only and --lrs"):
        make_plan(LOADED, tmp_path, only=["relu"], aa=True)


def test_the_manifest_says_which_rate_is_the_recipes(tmp_path):
    make_plan(LOADED, tmp_path, only=["gelu", "relu"], lrs=[1e-3]).write_manifest()
    entries = json.loads((tmp_path / "grids" / "test@tiny.json").read_text())["runs"]
    assert {(entry["lr"], entry["fixed"]) for entry in entries} == {(RUN.recipe.lr, True), (1e-3, False)}


@pytest.mark.parametrize("data", ["digits", "fashion-mnist"])
def test_every_cell_makes_a_network(data):
    for run in load_grid("cells").grid.runs(data):
        with torch.device("meta"):
            run.config.build()
