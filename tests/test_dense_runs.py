"""Runs of segmentation, super-resolution and forecasting: killed and resumed, evaluated, exported, refused."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_commands import launch
from test_training import Killed, at_steps, same

from analysis import inside, plots
from metamixer import ConfigError, digest, override
from metamixer.config import parse
from metamixer.dense.forecast import ffnet_forecast
from metamixer.deploy.export import export
from metamixer.networks import of_run
from metamixer.recipes import named_run
from metamixer.training import checkpoint
from metamixer.training.folder import RunFolder
from metamixer.training.run_config import RunConfig
from metamixer.training.score import score
from metamixer.training.train import train

SMALL = {"data.train_samples": 12, "recipe.epochs": 3, "recipe.batch_size": 4, "recipe.micro_batch": 2}


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """A run of each task on files that are made here."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for part, shape in (("images", (33, 40, 3)), ("masks", (33, 40)), ("pictures", (41, 50, 3))):
        for split in ("train", "validation"):
            folder = root / "pictures" / split if part == "pictures" else root / part / split
            folder.mkdir(parents=True)
            for n in range(3):
                pixels = rng.integers(0, 3 if part == "masks" else 256, shape)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n}.png")
    values = np.cumsum(rng.standard_normal((300, 2)), 0)
    (root / "walk.csv").write_text("\n".join(["a,b", *(f"{a},{b}" for a, b in values)]))
    scenes = {
        "task": {"name": "scenes", "root": str(root), "num_classes": 3, "size": 32, "held_out": 2},
        "val_samples": 2,
    }
    photographs = {
        "task": {"name": "photographs", "root": str(root / "pictures"), "patch": 8, "held_out": 1},
        "val_samples": 1,
    }
    series = {"name": "series", "csv": str(root / "walk.csv"), "variables": 2, "look_back": 24, "horizon": 6}
    chosen = {
        "garments": {"data": {**scenes, "train_samples": 12}},
        "photographs": {"data": {**photographs, "train_samples": 12}, "model.blocks.depth": 1},
        "series": {
            "data": {"task": series, "train_samples": 12, "val_samples": 5},
            "model": {"network": "dlinear"},
        },
    }
    found = {name: override(override(named_run(name), changes), SMALL) for name, changes in chosen.items()}
    return found | {"forecaster": override(found["series"], {"model": ffnet_forecast(2, dim=4, kernel_size=5)})}


def outcome(path):
    return RunFolder(path).read("result.json")["raw"], checkpoint.read(path / "last.pt")["model"]


@pytest.mark.parametrize("name, metrics", [
    ("garments", ["miou", "pixel_accuracy"]), ("photographs", ["psnr", "ssim"]), ("series", ["mse", "mae"]),
    ("forecaster", ["mse", "mae"]),
])  # fmt: skip
def test_killed_resumed_and_evaluated_it_gives_the_same_bits(configs, name, metrics, tmp_path, monkeypatch):
    config = configs[name]
    if name == "forecaster":  # whose dropout is drawn anew in each pass
        model, windows = config.build(), torch.randn(4, *config.data.input_size)
        assert not torch.equal(model(windows), model(windows))
    result = train(config, tmp_path / "whole", "cpu")
    assert result["metric"] == metrics[0] and all(metric in result for metric in metrics)
    rows, *_ = score(str(tmp_path / "whole"), config.data, {}, device="cpu")
    assert rows["raw"] == pytest.approx(result["raw"], rel=1e-5)  # in another order of memory
    monkeypatch.setattr("metamixer.training.train.CHECKPOINT_SECONDS", -1.0)

    def kill():
        raise Killed

    at_steps(monkeypatch, [2, 4, 8], kill)
    for _ in range(3):
        with pytest.raises(Killed):
            train(config, tmp_path / "run", "cpu")
    train(config, tmp_path / "run", "cpu")
    assert same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))


DECODER = {
    "name": "ffnet",
    "blocks": {"depth": 1, "width": 16, "token_mixer": "ffnified_attention", "channel_mixer": "ffn"},
    "resize": "bilinear",
}


@pytest.mark.parametrize("name, changes", [
    ("garments", {}), ("garments", {"model.decoder": DECODER}), ("photographs", {}), ("forecaster", {}),
])  # fmt: skip
def test_networks_are_exported_and_checked(configs, name, changes, tmp_path):
    pytest.importorskip("onnxruntime")
    network = of_run(name, override(configs[name], changes))
    made = export(network, "onnx", tmp_path / f"{name}.onnx")
    assert float(re.search("differ by at most (.*?) ", made.checks[0])[1]) < 1e-4
    pytest.importorskip("coremltools")
    assert "conv" in export(network, "coreml", tmp_path / f"{name}.mlpackage").checks[1]


def test_core_ml_refuses_bicubic_interpolation_by_its_name(configs, tmp_path):
    pytest.importorskip("coremltools")
    network = of_run("x", override(configs["garments"], {"model.decoder": {**DECODER, "resize": "bicubic"}}))
    with pytest.raises(ConfigError, match=r"Core ML does not take .*bicubic"):
        export(network, "coreml", tmp_path / "x.mlpackage")


def test_costs_of_the_whole_network_are_shown_by_part():
    lines = launch("cost", "photographs").stdout
    assert "blocks.3" in lines and "token: query-key" in lines and "residuals" in lines


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": {"network": "dlinear"}}, "needs a super_resolver"),
        ({"model": {"network": "nonsense"}}, "no network 'nonsense'; there are segmenter"),
        ({"data": {"task": "recall", "train_samples": 8, "test_samples": 8}}, "needs a backbone"),
        ({"data.task.scale": 3}, "model.scale 2: task 'photographs' asks 96×96 pixels, the network gives 64×64"),
        ({"recipe.layer_decay": 0.9}, "this network does not name its layers"),
        ({"recipe.label_smoothing": 0.1}, "a task's samples are trained on as they are"),
    ],
)
def test_what_does_not_fit_a_task_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        override(named_run("photographs"), changes)
    assert "\n" not in str(caught.value)


def test_a_run_does_not_go_on_with_other_files(configs, tmp_path):
    config = configs["series"]
    train(override(config, {"recipe.epochs": 2}), tmp_path / "run", "cpu")
    (tmp_path / "run" / "result.json").unlink()
    path = Path(config.data.task.csv)
    kept = path.read_text()
    path.write_text(kept + "\n1.0,2.0")
    with pytest.raises(ConfigError, match="has changed: series has other files; put it back"):
        train(override(config, {"recipe.epochs": 2}), tmp_path / "run", "cpu")
    path.write_text(kept)


@pytest.mark.parametrize("name", ["garments", "photographs", "series"])
def test_a_runs_hash_holds_its_files_and_not_their_place(configs, name, tmp_path):
    config, key = configs[name], "csv" if name == "series" else "root"
    before = Path(getattr(config.data.task, key))
    after = tmp_path / "moved"
    shutil.copy(before, after) if name == "series" else shutil.copytree(before, after)
    moved = override(config, {f"data.task.{key}": str(after)})
    assert config.data.task.manifest and digest(moved) == digest(config)
    with (after if name == "series" else next(after.rglob("validation/1.png"))).open("ab") as file:
        file.write(b"\n")
    other = override(config, {f"data.task.{key}": str(after)})
    assert digest(other) != digest(config) and digest(parse(RunConfig, moved.to_dict())) == digest(config)
    with pytest.raises(ConfigError, match="its files are not those that the run was planned with"):
        train(moved, tmp_path / "run", "cpu")
    gone = override(config, {f"data.task.{key}": str(tmp_path / "nowhere")})
    assert gone.data.task.manifest is None and gone.identity()["data"]["task"][key] == str(tmp_path / "nowhere")


def test_small_copies_are_files_of_a_run_too(configs, tmp_path):
    root = tmp_path / "pictures"
    shutil.copytree(configs["photographs"].data.task.root, root)
    config = override(configs["photographs"], {"data.task.root": str(root)})
    for split in ("train", "validation"):
        (root / f"{split}_LR_x3").mkdir()
        for n in range(3):
            Image.new("RGB", (16, 13)).save(root / f"{split}_LR_x3" / f"{n}.png")
    at_three = override(config, {"data.task.scale": 3, "model.scale": 3})
    assert override(at_three, {"data.task.scale": 2, "model.scale": 2}).data.task.manifest == config.data.task.manifest
    assert at_three.data.task.manifest != config.data.task.manifest


def test_answers_that_are_pictures_are_drawn_beside_the_truth(configs, tmp_path):
    for name, shown in (("garments", True), ("photographs", True), ("series", False)):
        train(override(configs[name], {"recipe.epochs": 2}), tmp_path / name, "cpu")
        pictures, colours = inside.examples([inside.network(tmp_path / name, "mixer")])
        assert list(pictures) == (["input", "truth", "mixer"] if shown else [])
        if shown:  # of three test samples
            figure = plots.examples(pictures, colours)
            assert len(figure.axes) == 3 * 3
            assert len(figure.legends) == bool(colours)
        if colours:
            seen = {tuple(colour) for picture in pictures["truth"] for colour in picture.reshape(-1, 3).tolist()}
            named = {text.get_text() for text in figure.legends[0].get_texts()}
            assert {name for name, colour in colours.items() if colour in seen} <= named


def test_more_samples_than_there_are_are_refused(configs, tmp_path):
    with pytest.raises(ConfigError, match=r"data.val_samples 9: task scenes .* has 2; hold out more training"):
        train(override(configs["garments"], {"data.val_samples": 9}), tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()
