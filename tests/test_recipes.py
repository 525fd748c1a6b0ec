"""Named runs against the published table, written out here, and what builds on what."""

import json
from pathlib import Path

import pytest
import torch
from timm.models import get_pretrained_cfg

from metamixer import CONFIGS, ConfigError, differences, digest, override
from metamixer.recipes import RECIPES, named_run
from metamixer.training.folder import RunFolder
from metamixer.training.recipe import Weights

GPUS = 8
TEACHER = "regnety_160.deit_in1k"

# Keys of the published runs: common ones, then run by run (arXiv 2406.02021 and its released scripts).
COMMON = {
    "data": {"name": "folder", "num_classes": 1000, "channels": 3, "val_samples": 0, "train_samples": None,
             "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "skip_broken": False},
    "recipe": {"crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3), "flip_prob": 0.5, "color_jitter": 0.0,
               "rand_augment": "rand-m9-mstd0.5-inc1", "erase_prob": 0.25, "cutmix_alpha": 1.0, "mixup_prob": 0.5,
               "cutmix_prob": 0.5, "label_smoothing": 0.1, "ema_decay": 0.9995, "layer_scale_decay": True,
               "weight_decay_end": None, "lr_batch": None, "batch_norm": "average", "precision": "float16",
               "init": "ffnet",
               "branch_ratio": None, "compile": False,
               "betas": (0.9, 0.999), "layer_decay": 1.0, "head_lr_scale": 1.0},
}  # fmt: skip
AT_256 = {"lr": 1e-3, "micro_batch": 128, "epochs": 300, "warmup_epochs": 5, "cooldown_epochs": 20, "warmup_lr": 1e-6,
          "min_lr": 1e-5, "weight_decay": 0.05, "schedule": "cosine"}  # fmt: skip
AT_384 = {"lr": 5e-6, "micro_batch": 64, "epochs": 30, "warmup_epochs": 0, "cooldown_epochs": 0,
          "weight_decay": 1e-8, "schedule": "constant"}  # fmt: skip
#   name: network, resolution, evaluation crop, mixup, drop path, teacher, expected top-1
RUNS = {
    "ffnet_1": ("ffnet_1", 256, 0.90, 0.2, 0.1, None, "81.3 %"),
    "ffnet_2": ("ffnet_2", 256, 0.90, 0.2, 0.15, None, "82.9 %"),
    "ffnet_3": ("ffnet_3", 256, 0.95, 0.8, 0.35, None, "83.9 %"),
    "ffnet_4": ("ffnet_4", 256, 0.95, 0.8, 0.4, None, "not published"),
    "ffnet_1_distilled": ("ffnet_1", 256, 0.90, 0.8, 0.02, TEACHER, "82.1 %"),
    "ffnet_2_distilled": ("ffnet_2", 256, 0.90, 0.8, 0.08, TEACHER, "83.7 %"),
    "ffnet_3_distilled": ("ffnet_3", 256, 0.95, 0.8, 0.2, TEACHER, "84.5 %"),
    "ffnet_3_384": ("ffnet_3", 384, 1.0, 0.8, 0.4, None, "84.5 %"),
    "ffnet_4_384": ("ffnet_4", 384, 1.0, 0.8, 0.5, None, "85.3 %"),
}


@pytest.fixture
def weights(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "weights.pt")
    return str(tmp_path / "weights.pt")


@pytest.mark.parametrize("name", RUNS)
def test_a_published_run_field_by_field(name, weights):
    network, size, crop, mixup, drop_path, teacher, expected = RUNS[name]
    config = named_run(name, {"initial.source": weights} if name == "ffnet_4_384" else {})
    phase = AT_256 if size == 256 else AT_384
    for part, wanted in (
        ("data", {**COMMON["data"], "image_size": size, "eval_crop": crop}),
        ("recipe", {**COMMON["recipe"], **phase, "mixup_alpha": mixup, "drop_path_rate": drop_path}),
    ):
        found = getattr(config, part)
        assert {key: getattr(found, key) for key in wanted} == wanted
    recipe = config.recipe
    assert recipe.batch_size == GPUS * recipe.micro_batch and recipe.passes == GPUS and recipe.lr_scale == 1
    assert recipe.total_epochs == (320 if size == 256 else 30)
    assert config.model == CONFIGS[network] and config.seed == 42
    assert RECIPES[name].expected == expected and "2406.02021" in RECIPES[name].source
    if teacher is None:
        assert recipe.distillation is None
    else:
        d = recipe.distillation
        assert (d.teacher, d.weights, d.kind, d.alpha, d.temperature) == (teacher, None, "hard", 0.5, 1.0)
    starts = {"ffnet_3_384": Weights(source="ffnet_3.in1k"), "ffnet_4_384": Weights(source=weights)}
    assert config.initial == starts.get(name)
    listed = {*COMMON["recipe"], *AT_256, "mixup_alpha", "drop_path_rate", "batch_size", "distillation"}
    assert listed == set(type(recipe).model_fields), "a new field of the recipe is missing in this table"


def test_the_networks_of_the_table():
    depths = {"ffnet_1": (2, 2, 8, 2), "ffnet_2": (3, 3, 15, 3), "ffnet_3": (4, 4, 22, 5), "ffnet_4": (4, 4, 27, 3)}
    widths = {"ffnet_1": 80, "ffnet_2": 88, "ffnet_3": 96, "ffnet_4": 128}
    for name in RUNS.keys() - {"ffnet_4_384"}:
        model, network = named_run(name).model, RUNS[name][0]
        assert tuple(stage.depth for stage in model.stages) == depths[network]
        assert tuple(stage.width for stage in model.stages) == tuple(widths[network] * n for n in (1, 2, 4, 8))
        assert model.layer_scale == (1e-6 if network in ("ffnet_3", "ffnet_4") else None)


def test_the_teacher_is_deits_regnet():
    cfg = get_pretrained_cfg(TEACHER)
    assert cfg.architecture == "regnety_160" and cfg.url.endswith("deit/regnety_160-a5fe301d.pth")
    assert (cfg.mean, cfg.std, cfg.num_classes) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1000)


def test_the_small_runs_are_the_published_ones_scaled_down():
    small, full = named_run("small"), named_run("ffnet_1")
    changed = {key: value[1] for key, value in differences(full.recipe, small.recipe).items()}
    assert changed == {"epochs": 30, "warmup_epochs": 1, "cooldown_epochs": 2, "batch_size": 128, "ema_decay": 0.99,
                       "precision": "float32"}  # fmt: skip
    assert small.data.name == "fashion-mnist" and small.data.val_samples
    assert [stage.width for stage in small.model.stages] == [32, 64, 128, 256]


def finished(runs, name):
    """What a finished run of a recipe leaves, without the training."""
    folder = RunFolder(runs / digest(named_run(name)))
    folder.create(named_run(name))
    torch.save({"model": {}, "ema": {}}, folder.path / "last.pt")
    folder.write("result.json", {"state": "done", "weights": "ema"})
    return folder.path


@pytest.mark.parametrize(
    "name, needed, key",
    [
        ("ffnet_4_384", "ffnet_4", "initial.source"),
        ("small_finetuned", "small", "initial.source"),
        ("small_distilled", "small_teacher", "recipe.distillation.teacher"),
    ],
)
def test_a_run_that_builds_on_another_says_so_and_finds_it(tmp_path, name, needed, key):
    with pytest.raises(ConfigError, match=f"'{name}' builds on recipe '{needed}'.*--set {key}=") as caught:
        named_run(name, runs=tmp_path)
    assert "\n" not in str(caught.value)
    path = finished(tmp_path, needed)
    config = named_run(name, {"recipe.flip_prob": 0.25}, tmp_path)
    assert config.recipe.flip_prob == 0.25
    found = config.initial if key.startswith("initial") else config.recipe.distillation.weights
    assert found.source == str(path / "last.pt") and found.digest
    RunFolder(path).write("result.json", {"state": "failed"})
    with pytest.raises(ConfigError, match="no finished run"):
        named_run(name, runs=tmp_path)


def test_the_small_distilled_run_differs_from_the_plain_one_as_the_published_runs_do(tmp_path):
    finished(tmp_path, "small_teacher")
    plain, distilled = named_run("small"), named_run("small_distilled", runs=tmp_path)
    changed = differences(plain, override(distilled, {"recipe.distillation": None}))
    assert changed == {"recipe.mixup_alpha": (0.2, 0.8), "recipe.drop_path_rate": (0.1, 0.02)}


def test_keys_of_what_is_not_set_can_be_set(weights):
    config = named_run("ffnet_1_distilled", {"recipe.distillation.weights.source": weights})
    assert config.recipe.distillation.weights == Weights(source=weights)
    soft = named_run("ffnet_1_distilled", {"recipe.distillation.kind": "soft", "recipe.distillation.temperature": 2.0})
    assert soft.recipe.distillation.teacher == TEACHER and soft.recipe.distillation.temperature == 2
    assert named_run("ffnet_1", {"initial.source": weights, "initial.average": True}).initial.average


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("parity", {}, "no recipe 'parity'; it is a task: .*launch.py train recall --set data.task=parity"),
        ("scenes", {}, "it is a task: .* train garments"),
        ("rmt", {}, "it is a mixer: launch.py probe rmt"),
        ("ffnet_5", {}, "no recipe 'ffnet_5'; did you mean"),
        ("nothing", {}, "there are ffnet_1, ffnet_2"),
        ("ffnet_1", {"recipe.speed": 1}, "no key 'speed'"),
        ("ffnet_1", {"recipe.rand_augment": "rand-m9-mst0.5"}, "recipe.rand_augment: .*got 'rand-m9-mst0.5'"),
        ("ffnet_1", {"recipe.crop_scale": [0.5, 2.0]}, "crop_scale .*at most 1"),
        ("ffnet_1", {"initial.path": "x"}, "initial.source: missing key 'source'"),
        ("ffnet_1", {"initial.source": "nowhere.pt"}, "nowhere.pt.*no such file"),
        ("ffnet_3_384", {"initial.source": "nowhere.pt"}, "nowhere.pt.*no such file"),
    ],
)
def test_mistakes_are_one_line(name, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        named_run(name, overrides)
    assert "\n" not in str(caught.value)


def test_no_two_names_stand_for_the_same_run(weights):
    alone = [name for name in RECIPES if not RECIPES[name].needs]
    assert len({digest(named_run(name)) for name in alone}) == len(alone) > 8


def test_runs_keep_their_hashes():
    """Finished runs are found by them: a change here makes every such run a new one."""
    hashes = json.loads((Path(__file__).parent / "golden" / "recipes.json").read_text())
    assert {name: digest(named_run(name)) for name in hashes} == hashes
