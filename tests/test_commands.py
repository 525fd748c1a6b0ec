"""Training a named run and evaluating checkpoints from the command line, as its user meets them."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from small import RUN
from timm.data import create_transform

import launch as cli
from metamixer import digest, override
from metamixer.config import SCHEMA_VERSION
from metamixer.recipes import RECIPES
from metamixer.training.train import train

ROOT = Path(__file__).parent.parent


def launch(*arguments, code=0):
    """The command line in this process, which has its imports done: what it printed, and its errors."""
    shown, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(shown), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["launch.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert (ended.value.code or 0) == code, shown.getvalue() + errors.getvalue()
    return SimpleNamespace(stdout=shown.getvalue(), stderr=errors.getvalue())


def stored(config, path):
    path.write_text(json.dumps({"schema": SCHEMA_VERSION, "config": config.to_dict()}))
    return path


def rows(text):
    """Rows of the table of scores: by the first word, top-1, top-5, loss, samples."""
    lines = text.split("samples\n", 1)[1].splitlines()
    return {line.split()[0]: [float(n) for n in line.split()[-4:]] for line in lines if line.split()}


def numbers(path):
    """Metrics without times."""
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """32 training and 7 test images of 72 px, two classes, with one that is broken in each split beside them."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, counts in (("train", (16, 16)), ("validation", (4, 3))):
        for c, count in enumerate(counts):
            (root / split / f"class{c}").mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 200, (72, 72), dtype=np.uint8) + 55 * c
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / f"class{c}" / f"{i:02}.png")
    return root


def on_folder(folder, **changes):
    changes = {
        "data.name": "folder",
        "data.root": str(folder),
        "data.image_size": 72,
        "data.num_classes": 2,
        "data.train_samples": None,
        "data.val_samples": 0,
        "recipe.batch_size": 8,
        "recipe.epochs": 2,
        "model.stem_stride": 2,
        **changes,
    }
    return override(RUN, changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run trained by the command, and what the command showed."""
    root = tmp_path_factory.mktemp("trained")
    shown = launch("train", stored(RUN, root / "run.json"), "--runs", root / "runs").stdout
    return root, root / "runs" / digest(RUN), shown


def test_recipes_are_listed_with_source_and_figure():
    shown = launch("recipes").stdout
    assert all(name in shown and recipe.expected in shown for name, recipe in RECIPES.items())
    assert shown.count("2406.02021") >= 9


def test_a_run_is_trained_as_by_the_library(trained, tmp_path):
    _, path, shown = trained
    result = train(RUN, tmp_path / "run")
    assert numbers(path) == numbers(tmp_path / "run")
    scores = rows(shown)
    for kind in ("raw", "ema", "best"):
        assert scores[kind][:2] == [round(result[kind][key], 2) for key in ("top1", "top5")]
        assert scores[kind][3] == 500
    assert "ema (reported)" in shown and [f"epoch {n}:" in shown for n in (1, 2, 3)] == [True] * 3


def test_a_finished_run_is_not_trained_again(trained):
    root, path, shown = trained
    before = (path / "last.pt").stat().st_mtime_ns
    again = launch("train", path / "config.json", "--runs", root / "runs").stdout
    assert rows(again) == rows(shown) and (path / "last.pt").stat().st_mtime_ns == before
    other = launch("train", root / "run.json", "--runs", root / "runs", "--set", "recipe.epochs=1",
                   "--set", "recipe.warmup_epochs=0").stdout  # fmt: skip
    assert digest(override(RUN, {"recipe.epochs": 1, "recipe.warmup_epochs": 0})) in other


@pytest.mark.parametrize(
    "name, kinds", [("", {"raw", "ema", "best"}), ("last.pt", {"raw", "ema"}), ("best.pt", {"best"})]
)
def test_evaluating_a_run_gives_its_own_result(trained, name, kinds):
    _, path, shown = trained
    scores = rows(launch("evaluate", path / name).stdout)
    assert scores == {kind: values for kind, values in rows(shown).items() if kind in kinds}


def test_a_run_is_not_evaluated_as_another_network(trained):
    error = launch("evaluate", trained[1], "--model", "ffnet_2", code=2).stderr
    assert error.count("\n") == 1 and "which has its own network" in error


def test_evaluating_at_another_resolution(trained):
    shown = launch("evaluate", trained[1] / "last.pt", "--set", "data.image_size=16").stdout
    assert "at 16 px" in shown and rows(shown)["raw"][3] == 500
    assert rows(shown)["raw"] != rows(trained[2])["raw"]


def test_two_processes_share_a_run_and_an_evaluation(folder, tmp_path):
    run = on_folder(folder, **{"recipe.micro_batch": 4, "data.image_size": 24})
    stored(run, tmp_path / "run.json")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(ROOT / "launch.py")]

    def both(*arguments):
        done = subprocess.run([*torchrun, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    shown = both("train", tmp_path / "run.json", "--runs", tmp_path)
    assert shown.count("epoch 2:") == 1 and rows(shown)["raw"][3] == 7
    path = tmp_path / digest(run)
    assert rows(both("evaluate", path)) == rows(launch("evaluate", path).stdout)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_with_data_workers_on_and_launched_again(folder, tmp_path, number):
    config = on_folder(folder, **{"recipe.epochs": 20})
    run = stored(config, tmp_path / "run.json")
    arguments = ["train", run, "--workers", "2", "--runs", tmp_path / "stopped"]
    command = [sys.executable, ROOT / "launch.py", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    stopped = tmp_path / "stopped" / digest(config)
    while not (stopped / "last.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, number)  # Ctrl-C and a scheduler reach the data workers too
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "the same command goes on from here" in shown and "Traceback" not in shown
    launch(*arguments)
    train(config, tmp_path / "whole")  # without data workers
    assert numbers(tmp_path / "whole") == numbers(stopped)
    weights = [torch.load(path / "last.pt")["model"] for path in (tmp_path / "whole", stopped)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_broken_images_are_named_and_counted_when_they_are_left_out(folder, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(folder, root)
    names = [root / "train" / "class0" / "03.png", root / "validation" / "class1" / "01.png"]
    for name in names:
        name.write_bytes(name.read_bytes()[:100])
    run = stored(on_folder(root), tmp_path / "run.json")
    arguments = ["train", run, "--runs", tmp_path / "runs", "--workers", "1"]
    error = launch(*arguments, code=2).stderr
    assert len(error.strip().splitlines()) == 1 and "03.png: broken image" in error and "skip_broken" in error
    shown = launch(*arguments, "--set", "data.skip_broken=true").stdout
    assert rows(shown.split("left out")[0])["raw"][3] == 6
    assert all(f"left out: {name}" in shown.replace("\n", "") for name in names)
    done = next(path for path in (tmp_path / "runs").glob("*/result.json"))
    assert set(json.loads((done.parent / "broken.json").read_text())) == set(map(str, names))
    for name in (root / "validation").glob("*/*.png"):
        name.write_bytes(b"")
    assert launch("evaluate", done.parent, code=2).stderr.startswith("error: no sample to evaluate")


@pytest.fixture(scope="module")
def released(folder, tmp_path_factory):
    """A checkpoint of an FFNet-1 for two classes as the released files are: two kinds of weights, one name."""
    path = tmp_path_factory.mktemp("released") / "ffnet_1.pth.tar"
    models = [timm.create_model("ffnet_1", num_classes=2) for _ in range(2)]
    torch.save(dict(zip(("state_dict", "state_dict_ema"), (m.state_dict() for m in models), strict=True)), path)
    return path, [model.eval() for model in models]


def test_a_released_checkpoint_is_known_by_its_name(folder, released, monkeypatch):
    path, models = released
    monkeypatch.chdir(path.parent)
    arguments = ["--data", folder, "--set", "data.image_size=96", "--device", "cpu"]
    shown = launch("evaluate", path.name, *arguments).stdout  # not timm's model `ffnet_1` with a tag `pth.tar`
    assert "at 96 px, crop 0.9" in shown
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transform = create_transform(96, interpolation="bicubic", mean=mean, std=std, crop_pct=0.9)
    images, classes = [], []
    for c in (0, 1):
        for file in sorted((folder / "validation" / f"class{c}").iterdir()):
            images.append(transform(Image.open(file).convert("RGB")))
            classes.append(c)
    for kind, model in zip(("raw", "ema"), models, strict=True):
        with torch.inference_mode():
            logits = model(torch.stack(images))
        right = (logits.argmax(1) == torch.tensor(classes)).float().mean()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(classes))
        assert rows(shown)[kind] == pytest.approx([100 * float(right), 100.0, float(loss), 7], abs=6e-3)


def test_a_checkpoint_of_another_name_needs_its_network(folder, released, tmp_path):
    os.link(released[0], tmp_path / "mine.pth")
    arguments = ["evaluate", tmp_path / "mine.pth", "--data", folder, "--set", "data.num_classes=2"]
    assert "--model NAME" in launch(*arguments, code=2).stderr
    small = ["--set", "data.image_size=72"]
    assert rows(launch(*arguments, *small, "--model", "ffnet_1").stdout)["ema"][3] == 7
    assert "another model" in launch(*arguments, *small, "--model", "ffnet_2", code=2).stderr


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["train", "ffnet_5"], ["no recipe 'ffnet_5'"]),
        (["train", "my_grid.py"], ["my_grid.py is a grid: use `launch.py run my_grid.py`"]),
        (["train", "ffnet_1", "--set", "recipe.speed=1"], ["no key 'speed'"]),
        (["train", "ffnet_1", "--set", "recipe.micro_batch=100"], ["multiple of micro_batch 100"]),
        (["train", "ffnet_4_384"], ["ffnet_4", "--set initial.source=FILE"]),
        (["train", "nowhere.json"], ["nowhere.json: no run here"]),
        (["train", "ffnet_1", "--device", "gpu"], ["device 'gpu'"]),
        (["evaluate", "nowhere"], ["neither a run's folder"]),
        (["evaluate", "ffnet_1", "--set", "recipe.epochs=1"], ["keys of data only"]),
        (["evaluate", "ffnet_1", "--data", ".", "--set", "data.image_size"], ["KEY=VALUE"]),
        (["evaluate", "ffnet_1", "--model", "fnet"], ["no timm model 'fnet'"]),
        (["evaluate", "ffnet_1", "--model", "ffnet_1.in2k"], ["no timm model 'ffnet_1.in2k'"]),
        (["evaluate", "ffnet_1.pth"], ["neither a run's folder, nor a checkpoint"]),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = launch(*arguments, code=2)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert all(part in done.stderr for part in parts), done.stderr


def test_damaged_and_foreign_checkpoints_are_one_line(released, folder, tmp_path):
    arguments = ["--data", folder, "--set", "data.num_classes=2"]
    torn = tmp_path / "ffnet_1.pth.tar"
    torn.write_bytes(released[0].read_bytes()[:100_000])
    assert "not a whole checkpoint" in launch("evaluate", torn, *arguments, code=2).stderr


def test_data_that_cannot_be_used_leaves_no_folder_behind(tmp_path):
    run = stored(override(RUN, {"data": {**RUN.data.to_dict(), "name": "folder", "root": str(tmp_path / "nowhere")}}),
                 tmp_path / "run.json")  # fmt: skip
    assert "nowhere" in launch("train", run, "--runs", tmp_path / "runs", code=2).stderr
    assert not (tmp_path / "runs").exists()


def test_following_runs_waits_for_neither_torch_nor_timm(trained):
    """In a process of its own: this one has them. A hook has FFNet join timm in either order of imports."""
    check = "import sys, launch; launch.app(sys.argv[1:], standalone_mode=False); "
    check += "print([name for name in ('torch', 'timm', 'numpy', 'pandas') if name in sys.modules])"
    root = trained[0] / "runs"
    (root / "grids").mkdir(exist_ok=True)
    listed = {"grid": "one", "data": "tiny", "runs": [{"hash": next(root.glob("*/config.json")).parent.name,
              "variant": "gelu", "seed": 0}]}  # fmt: skip
    (root / "grids" / "one@tiny.json").write_text(json.dumps(listed))
    for command in (["status"], ["logs", "one"], ["retry"], ["cancel", "one"]):
        done = subprocess.run([sys.executable, "-c", check, *command, "--runs", str(root)], cwd=ROOT,
                              capture_output=True, text=True, check=True, timeout=100)  # fmt: skip
        assert done.stdout.splitlines()[-1] == "[]", command
    assert "1 done" in launch("status", "--runs", root).stdout


@pytest.mark.parametrize("order", ["metamixer.ffnet, timm", "timm, metamixer.ffnet"])
def test_importing_ffnet_registers_it_in_timm(order):
    made = f"import {order}; assert timm.is_model('ffnet_4'); print(type(timm.create_model('ffnet_mini')).__name__)"
    done = subprocess.run([sys.executable, "-c", made], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout == "Backbone\n", done.stderr


def test_the_package_gives_what_needs_torch_and_nothing_else():
    from metamixer import Activation, operation

    assert Activation is operation.Activation
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = __import__("metamixer").nothing
