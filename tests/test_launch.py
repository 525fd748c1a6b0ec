"""The command line as its user meets it: a grid from launch to table, and every mistake in one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from test_commands import launch as launch_here

ROOT = Path(__file__).parent.parent


def launch(*arguments, code=0, **kwargs):
    done = subprocess.run(
        [sys.executable, ROOT / "launch.py", *map(str, arguments)], capture_output=True, text=True, **kwargs
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


def snapshot(folder):
    return {str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


def test_help_does_not_import_torch():
    code = "import sys, launch\nassert not {'torch', 'timm', 'pandas'} & set(sys.modules), 'heavy imports'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert "Swap a slot" in launch("--help").stdout


def test_list_shows_every_grid():
    shown = launch_here("list").stdout
    assert all(path.stem in shown for path in (ROOT / "ablations").glob("[a-z]*.py"))


def test_a_grid_runs_once_and_a_failing_variant_stops_nothing(grid, tmp_path):
    runs = tmp_path / "runs"
    plan = launch("plan", grid, "--runs", runs).stdout
    assert not runs.exists() and "2 new" in plan and "gelu" in plan

    shown = launch("run", grid, "--runs", runs, code=1).stdout
    assert "the loss is not a number in epoch" in shown
    manifest = json.loads((runs / "grids" / "tiny@tiny.json").read_text())
    results = {
        (r["variant"], r["seed"]): json.loads((runs / r["hash"] / "result.json").read_text()) for r in manifest["runs"]
    }
    assert [results[v, s]["state"] for v in ("gelu", "relu", "diverging") for s in (0, 1)] == ["done"] * 4 + [
        "failed"
    ] * 2
    assert (runs / "grids" / "tiny@tiny.png").stat().st_size > 10_000
    for variant in ("gelu", "relu", "diverging"):
        assert variant in shown

    before = snapshot(runs)
    again = launch("run", grid, "--runs", runs, code=1).stdout
    assert "nothing to run" in again and "--retry" in again
    changed = {path for path, when in snapshot(runs).items() if before.get(path) != when}
    assert {Path(path).parent.name for path in changed} <= {"grids"}

    more = launch("run", grid, "--runs", runs, "--seeds", "0,1,2", "--only", "gelu,relu").stdout
    assert more.count(" in ") >= 2 and "gelu seed 2" in more and "gelu seed 0" not in more


def test_stopped_in_the_middle_and_launched_again_gives_the_same_bits(grid, tmp_path):
    arguments = ["run", grid, "--only", "gelu", "--set", "recipe.epochs=12", "--runs"]
    launch(*arguments, tmp_path / "whole")
    command = [sys.executable, ROOT / "launch.py", *map(str, arguments), tmp_path / "stopped"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "stopped").glob("*/last.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "the same command goes on from here" in shown
    assert len(list((tmp_path / "stopped").glob("*/result.json"))) < 2
    launch(*arguments, tmp_path / "stopped")
    for path in (tmp_path / "whole").glob("*/metrics.jsonl"):
        rows = [[json.loads(line) for line in (root / path.parent.name / "metrics.jsonl").read_text().splitlines()]
                for root in (tmp_path / "whole", tmp_path / "stopped")]  # fmt: skip
        for a, b in zip(*rows, strict=True):
            assert a | b == {**a, "seconds": b["seconds"], "images_per_second": b["images_per_second"]}


# without it a test could only wait and hope that the launch has come so far
sees_handlers = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows a process's handlers (/proc)")


def wait_until_it_listens(process):
    """Until a launch has its handler of SIGTERM, which it installs last of its handlers."""
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)[1], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.02)
    raise AssertionError("it ended before")


@sees_handlers
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_the_first_run_still_starts(grid, tmp_path, number):
    """Ctrl-C goes to the whole group, a scheduler's signal may go to the launch alone."""
    runs = tmp_path / "runs"
    command = [sys.executable, ROOT / "launch.py", "run", grid, "--only", "gelu", "--set", "recipe.epochs=2000"]
    process = subprocess.Popen([*map(str, command), "--runs", runs], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, start_new_session=True)  # fmt: skip
    wait_until_it_listens(process)  # the imports of its first run take seconds from then on
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    try:
        shown, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 1 and "the same command goes on from here" in shown and "Traceback" not in shown


def test_a_killed_worker_is_reported_and_the_others_go_on(grid, tmp_path):
    arguments = [*map(str, ["run", grid, "--only", "gelu,relu", "--set", "recipe.epochs=12", "--workers", "2"])]
    command = [sys.executable, ROOT / "launch.py", *arguments, "--runs", tmp_path / "runs"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    killed = None
    while killed is None and time.monotonic() < deadline:
        for path in (tmp_path / "runs").glob("*/progress.json"):
            killed = json.loads(path.read_text())["pid"]
        time.sleep(0.05)
    os.kill(killed, signal.SIGKILL)
    shown, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and "its process ended by SIGKILL" in shown
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 3
    launch(*arguments, "--runs", tmp_path / "runs")
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 4


def test_an_operation_of_ones_own_runs_from_its_file(grid, tmp_path):
    (tmp_path / "my_op.py").write_text(
        "from metamixer import Activation, register\n\n@register\nclass Sine(Activation):\n"
        "    name = 'sine'\n    def forward(self, scores):\n        return scores.sin()\n"
    )
    (tmp_path / "mine.py").write_text(grid.read_text().replace('KEY: "relu"', 'KEY: "sine"'))
    arguments = ["run", tmp_path / "mine.py", "--only", "relu", "--seeds", "0", "--runs", tmp_path / "runs"]
    assert "no activation operation 'sine'" in launch_here(*arguments, code=2).stderr
    assert "top-1" in launch(*arguments, "--module", tmp_path / "my_op.py").stdout


def images(folder, classes=2, count=20, size=12):
    for split in ("train", "validation"):
        for c in range(classes):
            (folder / split / f"class{c}").mkdir(parents=True)
            for i in range(count):
                Image.new("L", (size + i, size), 40 * i % 255).save(folder / split / f"class{c}" / f"{i:02}.png")


def on_folder(folder):
    return ["--set", "data.name=folder", "--set", f"data.root={folder}", "--set", "data.num_classes=2",
               "--set", "data.train_samples=32", "--set", "data.val_samples=8", "--set", "recipe.batch_size=16",
               "--only", "gelu", "--seeds", "0", "--runs", folder.parent / "runs"]  # fmt: skip


def error_line(done):
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line or "gelu seed 0:" in line]
    assert lines, done.stdout + done.stderr
    return lines[-1]


def test_any_image_folder_trains(grid, tmp_path):
    images(tmp_path / "images")
    assert "gelu" in launch("run", grid, *on_folder(tmp_path / "images")).stdout


def test_data_mistakes_are_one_line_each_and_are_mended_by_launching_again(grid, tmp_path):
    folder = tmp_path / "images"
    arguments = on_folder(folder)
    assert "no such folder" in error_line(launch("run", grid, *arguments, code=1))
    folder.mkdir()
    assert "no folder train or training in it" in error_line(launch("run", grid, *arguments, code=1))
    images(folder, classes=3)
    line = error_line(launch("run", grid, *arguments, code=1))
    assert "has 3 classes, num_classes is 2: set data.num_classes=3" in line
    subprocess.run(["rm", "-r", folder / "train" / "class2", folder / "validation" / "class2"], check=True)
    broken = folder / "train" / "class1" / "03.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:40])
    line = error_line(launch("run", grid, *arguments, code=1))
    assert "03.png" in line and "broken image" in line
    broken.write_bytes(whole)
    assert "gelu" in launch("run", grid, *arguments).stdout


def test_an_empty_folder_is_named(grid, tmp_path):
    (tmp_path / "images" / "train" / "class0").mkdir(parents=True)
    line = error_line(launch_here("run", grid, *on_folder(tmp_path / "images"), code=2))
    assert "images/train: no image in a folder of its class" in line


def test_a_terminal_that_knows_ascii_only(grid):
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    shown = launch("plan", "ffnification", "--only", "attention, depthwise", env=ascii_only).stdout
    assert "attention" in shown and "depthwise" in shown
    assert "GPU-hours" not in shown, "no cluster was asked about"


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["plan", "ffnifcation"], ["no grid 'ffnifcation'", "ffnification"]),
        (["run", "ffnification", "--data", "cifar"], ["no data 'cifar'", "digits"]),
        (["plan", "ffnification", "--set", "recipe.lr"], ["KEY=VALUE"]),
        (["plan", "ffnification", "--seeds", "a"], ["whole numbers"]),
        (["plan", "ffnification", "--set", "recipe.speed=1"], ["no key 'speed'"]),
        (
            ["plan", "ffnification", "--set", "model.stages.*.channel_mixer.activation=gelo"],
            ["no activation operation 'gelo'"],
        ),
        (["plan", "kernel_size", "--set", "model.stages.*.token_mixer.query_key=scaled_dot"], ["takes map", "matmul"]),
        (["plan", "ffnification", "--set", "model.stages.0.width=20"], ["multiple"]),
        (["plan", "ffnification", "--set", "model.stages.*.token_mixer.query_key.head_dim=24"], ["heads of 24"]),
        (["collect", "ffnification", "--runs", "nowhere"], ["no grid", "nowhere"]),
    ],
)
def test_mistakes_are_one_line_and_a_non_zero_exit(arguments, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = launch_here(*arguments, code=2)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr
    assert not any(tmp_path.iterdir())


def test_an_unwritable_output_folder_is_one_line(grid, tmp_path):
    (tmp_path / "runs").write_text("")
    done = launch_here("run", grid, "--runs", tmp_path / "runs", code=2)
    assert len(done.stderr.strip().splitlines()) == 1 and "runs: File exists" in done.stderr


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_later(grid, tmp_path):
    """RLIMIT_FSIZE refuses to write files beyond a size, as a full disk does; the checkpoint is the largest."""
    arguments = ["run", grid, "--only", "gelu", "--seeds", "0", "--runs", tmp_path / "runs"]
    limited = "import resource, signal, subprocess, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))\n"
    limited += "sys.exit(subprocess.run([sys.executable, *sys.argv[1:]], restore_signals=False).returncode)"
    done = subprocess.run(
        [sys.executable, "-c", limited, ROOT / "launch.py", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert "File too large" in done.stdout and "launch again" in done.stdout
    assert "gelu" in launch(*arguments).stdout
