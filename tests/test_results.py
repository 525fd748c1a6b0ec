"""Shipped results: what comes out of a pack is what went in, without what nobody reads."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from grids import LADDER, METRIC, key, write_grid
from small import RUN

from analysis import frame, inside, results
from launch import app
from metamixer.training.train import train


def pack(root, grid, data, out, weights=()):
    (path,) = results.write(out, [results.of_grid(root, grid, data, weights)])
    return path


def predict(root, classes=10, images=300):
    """Give every finished run predictions: right in most cases, wrong mostly where the others are."""
    rng = np.random.default_rng(0)
    label = rng.integers(classes, size=images).astype(np.uint8)
    hard = rng.random(images) < 0.3
    for folder in root.glob("?" * 16):
        if json.loads((folder / "result.json").read_text())["state"] == "done":
            wrong = hard & (rng.random(images) < 0.5)
            predicted = np.where(wrong, rng.integers(classes, size=images), label).astype(np.uint8)
            np.savez_compressed(folder / "predictions.npz", label=label, raw=predicted, ema=predicted[::-1])
        (folder / "last.pt").write_bytes(b"weights")
        (folder / "environment.json").write_text(json.dumps({"torch": "2.14.1", "host": "a-name", "commit": "abc"}))
    return label


@pytest.fixture
def root(tmp_path):
    write_grid(tmp_path / "runs")
    predict(tmp_path / "runs")
    return tmp_path / "runs"


def test_a_pack_reads_like_the_runs_that_it_was_made_of(root, tmp_path):
    path = pack(root, "ffnification", "digits", tmp_path / "packs")
    opened = results.open_runs(tmp_path / "packs")
    loaded, original = (frame.load(place, "ffnification", with_config=True)[0] for place in (opened, root))
    pd.testing.assert_frame_equal(loaded.drop(columns="folder"), original.drop(columns="folder"))
    pd.testing.assert_frame_equal(frame.curves(loaded), frame.curves(original))
    done = original.loc[original["state"] == "done", "hash"]
    assert len(done) == 26
    for name in done:
        with np.load(root / name / "predictions.npz") as before, np.load(opened / name / "predictions.npz") as after:
            assert set(before) == set(after)
            for kind in before:
                np.testing.assert_array_equal(before[kind], after[kind])
    assert not list(opened.rglob("last.pt"))
    assert "a-name" not in " ".join(found.read_text() for found in opened.rglob("*.json"))
    assert path.stat().st_size < sum(file.stat().st_size for file in root.rglob("*.npz"))


def test_a_small_pack_keeps_every_figure_but_predictions_and_times(root, tmp_path):
    name = key("attention", 0)
    row = {"epoch": 1, "val_top1": 50.25, "seconds": 1.5, "images_per_second": 2e-05}
    (root / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    results.write(tmp_path / "packs", [results.of_grid(root, "ffnification", "digits", small=True)])
    (tmp_path / "packs" / "other@digits.tar.xz").write_bytes(b"not opened, as it has another name")
    opened = results.open_runs(tmp_path / "packs", "ffnification")
    loaded, original = (frame.load(place, "ffnification", with_config=True)[0] for place in (opened, root))
    pd.testing.assert_frame_equal(loaded.drop(columns="folder"), original.drop(columns="folder"))
    assert json.loads((opened / name / "metrics.jsonl").read_text()) == {"epoch": 1, "val_top1": 50.25}
    assert not list(opened.rglob("predictions.npz"))


def test_a_folder_of_runs_is_opened_as_it_is(root):
    assert results.open_runs(root) == root


def test_the_same_runs_make_the_same_bytes(root, tmp_path):
    first, second = (pack(root, "ffnification", "digits", tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_runs_of_other_test_images_are_kept_apart(root, tmp_path):
    name = key("attention", 0)
    other = {"label": np.arange(500, dtype=np.uint16), "raw": np.arange(500, dtype=np.uint16)[::-1]}
    np.savez_compressed(root / name / "predictions.npz", **other)
    pack(root, "ffnification", "digits", tmp_path / "packs")
    with np.load(results.open_runs(tmp_path / "packs") / name / "predictions.npz") as after:
        np.testing.assert_array_equal(after["raw"], other["raw"])


def test_what_can_not_be_shipped_is_one_line(root, tmp_path):
    with pytest.raises(ValueError, match="no grid ladder"):
        pack(root, "ladder", "digits", tmp_path)
    write_grid(tmp_path / "new", {name: ([None], 1) for name in LADDER})
    with pytest.raises(ValueError, match="no run has finished"):
        pack(tmp_path / "new", "ffnification", "digits", tmp_path)
    (tmp_path / "torn").mkdir()
    whole = pack(root, "ffnification", "digits", tmp_path / "packs").read_bytes()
    middle = len(whole) // 2
    for left in (whole[:middle], whole[:middle] + bytes(8) + whole[middle + 8 :], b"no pack"):
        (tmp_path / "torn" / "a@b.tar.xz").write_bytes(left)
        with pytest.raises(ValueError, match=r"a@b.tar.xz: no pack of results, or a damaged one"):
            results.open_runs(tmp_path / "torn")


def test_a_pack_writes_nothing_outside_its_folder(tmp_path):
    """A made-up pack once wrote where it liked."""
    results.write_pack(tmp_path / "packs" / "g@d.tar.xz", {"../../elsewhere/result.json": b"{}"})
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"g@d.tar.xz: no pack of results, or a damaged one"):
        results.open_runs(tmp_path / "packs")
    assert set(tmp_path.rglob("*")) == before


def test_torn_files_of_a_run_do_not_keep_the_others_from_being_shipped(root, tmp_path):
    first, second = key("attention", 0), key("attention", 1)
    torn = root / first / "predictions.npz"
    torn.write_bytes(torn.read_bytes()[:200])
    (root / second / "environment.json").write_text('{"torch": "2.1')
    pack(root, "ffnification", "digits", tmp_path / "packs")
    opened = results.open_runs(tmp_path / "packs")
    assert not (opened / first / "predictions.npz").exists() and (opened / second / "predictions.npz").exists()


def test_several_grids_are_shipped_together_or_not_at_all(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inside, "rounded_weights", lambda folder: {"of": np.array(folder.name)})
    write_grid(root, {"attention": ([90.0], 1), "k7": ([91.0], 1)}, grid="kernel_size")
    ship = ["ship", "ffnification", "kernel_size", "--runs", str(root), "--out", str(tmp_path / "packs")]
    with pytest.raises(ValueError, match=r"--weights nobody: .* in ffnification@digits, kernel_size@digits"):
        app([*ship, "--weights", "gelu,nobody"], standalone_mode=False)
    with pytest.raises(ValueError, match="no grid ladder"):
        app([*ship, "ladder"], standalone_mode=False)
    assert not (tmp_path / "packs").exists()
    app([*ship, "--weights", "attention,k7"], standalone_mode=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("weights of attention") and second.endswith("weights of attention, k7")
    kept = results.open_runs(tmp_path / "packs").rglob("weights.npz")
    names = [key("attention", 0), *(key(variant, 0, "kernel_size", "digits") for variant in ("attention", "k7"))]
    assert {path.parent.name for path in kept} == set(names)


@pytest.mark.parametrize("command", ["ship", "collect", "report"])
def test_of_a_grid_that_can_not_be_read_nothing_is_written(command, tmp_path):
    grids = tmp_path / "grids"
    grids.mkdir()
    (grids / "torn@digits.json").write_text('{"schema": 1, "gr')
    (grids / "none@digits.json").write_text('{"schema": 2, "grid": "none", "data": "digits", "runs": []}')
    for grid, why in (("torn", "torn@digits.json is half-written"), ("none", "none on digits in .* declares no runs")):
        out = ["--out", str(tmp_path / "packs")] if command == "ship" else []
        with pytest.raises(ValueError, match=why):
            app([command, grid, "--runs", str(tmp_path), *out])
    assert {path.name for path in tmp_path.rglob("*")} == {"grids", "torn@digits.json", "none@digits.json"}


def test_weights_that_go_along_compute_nearly_the_same(tmp_path):
    """Rounding moves a weight by at most a 32nd of the spread of its matrix, and few predictions."""
    root = tmp_path / "runs"
    run = RUN.model_copy(update={"modules": ()})
    train(run, root / key("v", 0), device="cpu")
    manifest = {"schema": 2, "grid": "g", "data": "digits", "question": "?", "base": "v", "metric": METRIC}
    (root / "grids").mkdir()
    runs = [{"hash": key("v", 0), "variant": "v", "seed": 0, "on": None, "changes": {}}]
    (root / "grids" / "g@digits.json").write_text(json.dumps(manifest | {"runs": runs}))
    pack(root, "g", "digits", tmp_path / "packs", ["v"])
    whole, rounded = (inside.network(place / key("v", 0)) for place in (root, results.open_runs(tmp_path / "packs")))
    assert whole.trained and rounded.trained
    for name, value in whole.model.state_dict().items():
        off = (value - rounded.model.state_dict()[name]).abs().max()
        if value.ndim > 1:
            assert off <= max(value.std(correction=0) / 32, value.abs().max() / 254) * 1.001, name
        elif value.is_floating_point():
            assert off <= value.abs().max() / 2000, name
    images, what = inside.images([whole], 360)
    assert what == "360 test images"
    with torch.no_grad():
        same = whole.model(images).argmax(1) == rounded.model(images).argmax(1)
    assert same.float().mean() > 0.95
