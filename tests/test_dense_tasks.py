"""Segmentation, super-resolution and forecasting: samples by their definition, measures against other code."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn import functional as F

from metamixer import ConfigError, override
from metamixer.cost import sizes
from metamixer.recipes import named_run
from metamixer.tasks import NOT_ASKED, build_task
from metamixer.tasks.checks import check_task
from metamixer.tasks.fashion import FASHION_MNIST
from metamixer.tasks.superresolution import luma, psnr, ssim
from metamixer.training.statistics import statistics

needs_fashion_mnist = pytest.mark.skipif(
    not FASHION_MNIST.exists(), reason="Debian's package dataset-fashion-mnist is not installed"
)


def refused(action):
    with pytest.raises(ConfigError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- segmentation


def picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)


@pytest.fixture
def scenes(tmp_path):
    """Six pictures of 40×30 and 30×50 in the plain layout; the class of a pixel is its red level, 3 is not asked."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("validation", 2)):
        for n in range(count):
            mask = rng.integers(0, 4, (30, 40) if n % 2 else (50, 30))
            image = np.stack([mask * 80, mask * 0, mask * 0], -1)
            picture(tmp_path / "images" / split / f"{n}.png", image)
            picture(tmp_path / "masks" / split / f"{n}.png", np.where(mask == 3, 255, mask))
    return {"name": "scenes", "root": str(tmp_path), "num_classes": 3, "size": 32, "scales": [1.0, 1.0]}


@pytest.fixture
def photographs(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for n in range(2):
            picture(tmp_path / split / f"{n}.png", rng.integers(0, 256, (41, 50 + n, 3)))
    return {"name": "photographs", "root": str(tmp_path), "patch": 8}


def test_the_confusion_matrix_gives_iou_and_accuracy_however_it_is_shared_out(scenes):
    task = build_task(scenes)
    rng = np.random.default_rng(1)
    right, outputs = rng.integers(0, 3, (6, 9, 7)), torch.randn(6, 3, 9, 7)
    right[rng.random(right.shape) < 0.2] = NOT_ASKED
    found = task.measure(task.tally(outputs, torch.from_numpy(right)))
    predicted, asked = outputs.argmax(1).numpy(), right != NOT_ASKED
    iou = [
        ((right == k) & (predicted == k)).sum() / ((((right == k) | (predicted == k)) & asked).sum()) for k in range(3)
    ]
    assert found["miou"] == pytest.approx(100 * np.mean(iou), abs=1e-9)
    assert found["pixel_accuracy"] == pytest.approx(100 * (right == predicted)[asked].mean(), abs=1e-9)
    parts = [task.tally(outputs[i::3], torch.from_numpy(right)[i::3]) for i in range(3)]
    shared = task.measure(sum(parts))
    assert {key: shared[key] for key in ("miou", "pixel_accuracy")} == {
        key: found[key] for key in ("miou", "pixel_accuracy")
    }
    assert shared["loss"] == pytest.approx(found["loss"], rel=1e-6)


def test_crops_and_whole_pictures_keep_masks_on_their_pixels(scenes):
    task = build_task(scenes)
    assert (task.count("train"), task.count("val"), task.count("test")) == (None, 0, 2)
    held = build_task({**scenes, "held_out": 3})
    assert held.count("val") == 3 and len(held._files("train")) == 1
    assert not set(held._files("train")) & set(held._files("val"))
    none = build_task({**scenes, "held_out": 4})
    assert "leaves none of 4" in refused(lambda: none.samples(0, "train", torch.arange(1)))
    images, masks = task.samples(0, "test", torch.tensor([1]))
    assert images.shape == (1, 3, 32, 43) and masks.shape == (1, 30, 40)  # answered at the mask's own resolution
    outputs = torch.nn.functional.one_hot(masks.clamp(0), 3).movedim(-1, 1).float()
    assert task.measure(task.tally(outputs, masks))["miou"] == 100
    images, masks = task.samples(0, "train", torch.arange(64))
    assert images.shape == (64, 3, 32, 32) and masks.shape == (64, 32, 32)
    # scaled from 30 to 32 pixels by two kinds of interpolation, so that some pixels differ
    red = ((images[:, 0] * 0.229 + 0.485) * 255 / 80).round().long()
    assert float((red == masks)[masks != NOT_ASKED].float().mean()) > 0.5
    assert 0.1 < float((masks == NOT_ASKED).float().mean()) < 0.4


def test_crops_may_be_rectangles(scenes):
    plain, task = build_task(scenes), build_task({**scenes, "crop": [32, 64]})
    images, masks = task.samples(0, "train", torch.arange(64))
    assert images.shape == (64, 3, *task.input_size) and masks.shape == (64, 32, 64) == (64, *task.answer_size)
    red = ((images[:, 0] * 0.229 + 0.485) * 255 / 80).round().long()
    assert float((red == masks)[masks != NOT_ASKED].float().mean()) > 0.5
    assert "crop" not in plain.config.identity() and task.config.identity()["crop"] == [32, 64]
    square, wide = (
        override(named_run("garments"), {"data": {"task": each.config, "train_samples": 32}}) for each in (plain, task)
    )
    assert wide.build()(images[:2]).shape == (2, 3, 32, 64)
    assert sizes(wide.build, wide.data.input_size).macs > 1.9 * sizes(square.build, square.data.input_size).macs


def test_windows_cover_a_picture_and_are_averaged_where_they_overlap(scenes):
    """Against a loop over pixels; the network tells where in its window a pixel stands."""

    def model(x):
        places = torch.arange(x.shape[2] * x.shape[3], dtype=torch.float).view(1, 1, *x.shape[2:])
        return places.expand(len(x), 3, -1, -1)

    task = build_task({**scenes, "window": 32, "window_stride": 20})
    found = task.answer(model, torch.zeros(1, 3, 40, 75))
    tops, lefts = [0, 8], [0, 20, 40, 43]
    for row, column in ((0, 0), (9, 21), (39, 74), (20, 42)):
        inside = [(row - t, column - c) for t in tops for c in lefts]
        scores = [32 * down + across for down, across in inside if 0 <= down < 32 and 0 <= across < 32]
        assert float(found[0, 0, row, column]) == pytest.approx(np.mean(scores))
    assert torch.equal(task.answer(model, torch.zeros(1, 3, 30, 31)), model(torch.zeros(1, 3, 30, 31)))


def test_published_layouts_are_read(tmp_path):
    mask = np.array([[0, 1], [2, 150]])
    for part, values in (("images", mask), ("annotations", mask)):
        picture(tmp_path / part / "validation" / "ADE_val_1.png", values)
    task = build_task({"name": "scenes", "root": str(tmp_path), "layout": "ade20k", "num_classes": 150, "size": 32})
    assert task.samples(0, "test", torch.tensor([0]))[1].tolist() == [[[NOT_ASKED, 0], [1, 149]]]
    picture(tmp_path / "leftImg8bit" / "val" / "ulm" / "ulm_1_leftImg8bit.png", mask)
    picture(tmp_path / "gtFine" / "val" / "ulm" / "ulm_1_gtFine_labelTrainIds.png", np.array([[0, 1], [18, 255]]))
    task = build_task({"name": "scenes", "root": str(tmp_path), "layout": "cityscapes", "num_classes": 19, "size": 32})
    assert task.samples(0, "test", torch.tensor([0]))[1].tolist() == [[[0, 1], [18, NOT_ASKED]]]


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_pictures_of_any_channels_are_arrays(scenes, tmp_path, suffix):
    """Channel c of a pixel is its class plus c; whole numbers are parts of the largest of their type."""
    for file in sorted((tmp_path / "images").rglob("*.png")):
        levels = np.array(Image.open(str(file).replace("images", "masks")))[..., None].astype(np.uint16) + np.arange(5)
        file.unlink()
        if suffix == ".npy":
            np.save(file.with_suffix(suffix), levels.astype(np.uint16))
        else:
            tifffile.imwrite(file.with_suffix(suffix), np.moveaxis(levels.astype(np.uint16), -1, 0))
    config = {**scenes, "channels": 5, "size": 32, "mean": [0.0, 0.5, 0.0, 0.0, 0.0], "std": [1.0, 0.25, 1.0, 1.0, 1.0]}
    task = build_task(config)
    images, masks = task.samples(0, "test", torch.tensor([0, 0]))
    assert images.shape == (2, 5, 53, 32) and masks.shape == (2, 50, 30)
    torch.testing.assert_close(images[:, 1] * 0.25 + 0.5 - images[:, 0], torch.full((2, 53, 32), 1 / 65535))
    images, masks = task.samples(0, "train", torch.arange(32))
    assert images.shape == (32, 5, 32, 32) and bool((images[:, 4] > images[:, 0])[masks != NOT_ASKED].all())
    run = override(named_run("garments"), {"data": {"task": config, "train_samples": 32}})
    mean, std = statistics(run, 32)
    expected = task.samples(0, "train", torch.arange(32))[0].double()[:, 0]
    assert (mean[0], std[0]) == pytest.approx((float(expected.mean()), float(expected.std(correction=0))))
    assert [c.shape[0] for c in task.pictures(images[:1], masks[:1], torch.zeros(1, 3, 32, 32))] == [3, 3, 3]
    first = next((tmp_path / "images" / "validation").glob("0.*"))
    other = build_task({**scenes, "channels": 4})
    assert "×5" in (line := refused(lambda: other.samples(0, "test", torch.tensor([0])))) or "5×" in line
    first.write_bytes(b"no array")
    assert f"{first}: cannot be read" in refused(lambda: task.samples(0, "test", torch.tensor([0])))


def test_grey_files_are_colour_for_networks_of_colour_and_the_other_way_round(scenes, photographs, tmp_path):
    """16 bits of grey keep their ramp."""
    ramp = np.linspace(0, 65535, 32 * 50).reshape(50, 32).astype(np.uint16)
    picture(tmp_path / "masks" / "validation" / "0.png", np.zeros((50, 32)))
    Image.fromarray(ramp).save(tmp_path / "images" / "validation" / "0.png")
    colour, grey = (build_task({**scenes, "channels": n}) for n in (3, 1))
    images = colour.samples(0, "test", torch.tensor([0]))[0][0]
    levels = images * torch.tensor(colour.std)[:, None, None] + torch.tensor(colour.mean)[:, None, None]
    np.testing.assert_allclose(levels, np.broadcast_to(ramp / 65535, (3, 50, 32)), atol=1 / 255)
    torch.testing.assert_close(grey.samples(0, "test", torch.tensor([0]))[0][0], levels[:1])
    assert grey.samples(0, "test", torch.tensor([1]))[0].shape == (1, 1, 32, 43)
    Image.fromarray(ramp).save(tmp_path / "validation" / "0.png")
    found = build_task(photographs).samples(0, "test", torch.tensor([0]))[1][0]
    np.testing.assert_allclose(found, np.broadcast_to(ramp / 65535, (3, 50, 32)), atol=1 / 255)


def test_photometric_distortion_changes_levels_and_nothing_else(scenes):
    plain, task = build_task({**scenes, "size": 48}), build_task({**scenes, "size": 48, "photometric": True})
    (before, masks), (after, same) = (each.samples(0, "train", torch.arange(64)) for each in (plain, task))
    assert torch.equal(masks, same) and "photometric" not in plain.config.identity()
    left = (before == after).flatten(1).all(1)
    # what is black stays black for saturation, hue and contrast: of brightness alone half change it
    assert 0 < int(left.sum()) < 32 and float((before - after).abs().max()) < 255 / 255 / 0.22
    assert "three channels" in refused(lambda: build_task({**scenes, "photometric": True, "channels": 1}))


def test_a_pass_that_asks_for_nothing_does_not_end_a_run(scenes):
    task = build_task(scenes)
    outputs = torch.randn(1, 3, 4, 4, requires_grad=True)
    nothing = torch.full((1, 4, 4), NOT_ASKED)
    loss = task.loss(outputs, nothing)
    loss.backward()
    assert float(loss.detach()) == 0 and not outputs.grad.any()
    assert "no pixel" in refused(lambda: task.measure(task.tally(outputs.detach(), nothing)))
    asked = torch.tensor([[1, 2]])
    assert torch.equal(
        task.loss(outputs[:, :, :1, :2], asked[None]), F.cross_entropy(outputs[:, :, :1, :2], asked[None])
    )


def test_wrong_masks_are_named(scenes, tmp_path):
    first = torch.tensor([0])
    assert "its mask" in refused(lambda: build_task({**scenes, "layout": "ade20k"}).count("test"))
    assert "no images in" in refused(lambda: build_task({**scenes, "layout": "cityscapes"}).count("test"))
    few = build_task({**scenes, "num_classes": 2})
    assert "0.png: class 2, num_classes is 2" in refused(lambda: few.samples(0, "test", first))
    picture(tmp_path / "masks" / "validation" / "0.png", np.zeros((4, 5)))
    assert "0.png: 5×4 pixels, but its image has 30×50" in refused(lambda: build_task(scenes).samples(0, "test", first))
    for part in ("masks", "images"):
        (file := tmp_path / part / "validation" / "0.png").write_text("no picture")
        assert f"{file}: cannot be read" in refused(lambda: build_task(scenes).samples(0, "test", first))
    assert "the smallest factor, then the largest" in refused(lambda: build_task({**scenes, "scales": [2.0, 0.5]}))
    assert "one number for each of 3" in refused(lambda: build_task({**scenes, "mean": [0.5]}))


@needs_fashion_mnist
def test_garments_keep_the_contract_and_show_what_their_masks_say():
    assert [row for row in check_task({"name": "garments", "size": 32}) if not row.passed] == []
    task = build_task({"name": "garments", "size": 32, "fewest": 3, "most": 3})
    _, masks = task.samples(0, "train", torch.arange(100))
    assert set(masks.unique().tolist()) == set(range(11))
    ground = build_task({"name": "garments", "size": 32, "fewest": 1, "most": 1}).samples(0, "train", torch.arange(100))
    assert float((ground[1] > 0).float().mean()) < float((masks > 0).float().mean())
    assert "exceeds most" in refused(lambda: build_task({"name": "garments", "fewest": 9}))


# ---- super-resolution


def test_psnr_and_ssim_are_those_of_scikit_image():
    rng = np.random.default_rng(0)
    right = rng.random((2, 3, 40, 33))
    found = np.clip(right + 0.1 * rng.standard_normal(right.shape), 0, 1)
    a, b = (luma(torch.from_numpy(each)) for each in (found, right))
    for n in range(2):
        x, y = a[n].numpy(), b[n].numpy()
        assert float(psnr(a, b)[n]) == pytest.approx(peak_signal_noise_ratio(y, x, data_range=255), abs=1e-6)
        settings = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        assert float(ssim(a, b)[n]) == pytest.approx(structural_similarity(y, x, **settings), abs=1e-6)


def test_small_patches_are_copies_of_their_large_ones(photographs):
    task = build_task(photographs)
    small, large = task.samples(0, "train", torch.arange(20))
    assert small.shape == (20, 3, 8, 8) and large.shape == (20, 3, 16, 16)
    assert float((small.mean((2, 3)) - large.mean((2, 3))).abs().max()) < 0.1
    small, large = task.samples(0, "test", torch.tensor([1]))
    assert small.shape == (1, 3, 20, 25) and large.shape == (1, 3, 40, 50)
    pixels = (large[0] * 255).byte().permute(1, 2, 0).numpy()
    half = np.asarray(Image.fromarray(pixels).resize((25, 20), Image.Resampling.BICUBIC))
    assert torch.equal((small[0] * 255).round().byte().permute(1, 2, 0), torch.from_numpy(half.copy()))
    assert task.metrics[0].levels["bicubic"] > 5 and [row for row in check_task(photographs) if not row.passed] == []


def test_a_perfect_answer_has_no_loss_and_the_loss_sees_spectra(photographs):
    task = build_task(photographs)
    x, y = torch.rand(2, 3, 6, 6), torch.rand(2, 3, 6, 6)
    spectra = np.fft.rfft2(x.double().numpy()) - np.fft.rfft2(y.double().numpy())
    expected = (x - y).abs().mean() + 0.02 * (np.abs(spectra.real).mean() + np.abs(spectra.imag).mean()) / 2
    assert float(task.loss(x, y)) == pytest.approx(float(expected), rel=1e-5) and float(task.loss(x, x)) == 0


def test_wrong_photographs_are_named(photographs, tmp_path):
    assert "a patch needs 32 a side" in refused(
        lambda: build_task({**photographs, "patch": 32}).samples(0, "train", torch.tensor([0]))
    )
    picture(tmp_path / "validation_LR_x3" / "0.png", np.zeros((5, 6, 3)))
    for_three = build_task({**photographs, "scale": 3})
    assert "0.png: 6×5 pixels, but 0.png at a scale of 3 needs 16×13" in refused(lambda: for_three.count("test"))
    assert "no images in" in refused(lambda: build_task({**photographs, "root": "nowhere"}).count("test"))


def test_scikit_images_photographs_are_there():
    task = build_task("photographs")
    assert (task.count("val"), task.count("test")) == (1, 3)
    assert task.samples(0, "train", torch.arange(4))[1].shape == (4, 3, 64, 64)


# ---- forecasting


@pytest.fixture
def series(tmp_path):
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.standard_normal((400, 2)), 0) * [1, 100]
    lines = [f"2020-01-{n},{a},{b}" for n, (a, b) in enumerate(values)]
    (tmp_path / "walk.csv").write_text("\n".join(["date,a,b", *lines]))
    config = {"name": "series", "csv": str(tmp_path / "walk.csv"), "variables": 2, "look_back": 20, "horizon": 10}
    return config, values


def test_windows_are_all_of_a_part_z_scored_by_the_training_part(series):
    config, values = series
    task = build_task({**config, "period": 4})
    train, test = values[:280], values[320 - 20 :]
    scored = (test - train.mean(0)) / train.std(0)
    assert task.count("train") is None and task.count("val") == 40 - 10 + 1 and task.count("test") == 80 - 10 + 1
    inputs, answers = task.samples(0, "test", torch.arange(71))
    assert inputs.shape == (71, 2, 1, 20) and answers.shape == (71, 2, 1, 10)
    for n in (0, 33, 70):
        np.testing.assert_allclose(inputs[n, :, 0].T, scored[n : n + 20], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(answers[n, :, 0].T, scored[n + 20 : n + 30], rtol=1e-5, atol=1e-5)
    outputs = torch.randn_like(answers)
    found = task.measure(task.tally(outputs[:50], answers[:50]) + task.tally(outputs[50:], answers[50:]))
    errors = (outputs - answers).double()
    assert found["mse"] == pytest.approx(float(errors.square().mean())) and found["mae"] == pytest.approx(
        float(errors.abs().mean())
    )
    naive = np.stack([[scored[n + 16 + (h % 4)] for h in range(10)] for n in range(71)])  # the last four, repeated
    expected = np.mean((naive - np.stack([scored[n + 20 : n + 30] for n in range(71)])) ** 2)
    assert task.metrics[0].levels["seasonal naive"] == pytest.approx(expected, rel=1e-5)
    assert [row for row in check_task(config) if not row.passed] == []


def test_ett_has_its_own_split(tmp_path):
    hours = np.arange(20 * 30 * 24 + 500)
    (tmp_path / "ett.csv").write_text("\n".join(["OT", *map(str, hours)]))
    task = build_task({"name": "series", "csv": str(tmp_path / "ett.csv"), "variables": 1, "split": "ett_hours"})
    month = 720
    assert (task.count("val"), task.count("test")) == (4 * month - 96 + 1,) * 2
    spread, mean = np.std(np.arange(12 * month)), np.mean(np.arange(12 * month))
    last = float(task.samples(0, "test", torch.tensor([4 * month - 96]))[1][0, 0, 0, -1])
    assert last * spread + mean == pytest.approx(20 * month - 1, abs=0.1)


def test_series_that_can_not_be_used_are_refused_in_a_line(series, tmp_path):
    config, _ = series

    def error(**changes):
        return refused(lambda: build_task({**config, **changes}).count("test"))

    assert "2 columns of numbers, variables is 3" in error(variables=3)
    assert "400 rows are too few" in error(horizon=96)
    assert "400 rows are too few for the split 'ett_hours'" in error(split="ett_hours")
    assert "cannot be read" in error(csv="nowhere.csv")
    text = (tmp_path / "walk.csv").read_text().splitlines()
    for name, lines, message in (
        (
            "words.csv",
            [*text[:9], "2020-01-9,none,1", *text[9:]],
            "column 'a': 1 of 401 values are no numbers, such as",
        ),
        ("semicolons.csv", [line.replace(",", ";") for line in text], "no column of numbers"),
        ("header.csv", text[:1], "no column of numbers"),
        ("empty.csv", [], "cannot be read (No columns to parse from file)"),
    ):
        (tmp_path / name).write_text("\n".join(lines))
        assert message in error(csv=str(tmp_path / name))
    text[5] = "2020-01-4,,7"
    (tmp_path / "gap.csv").write_text("\n".join(text))
    gap = {"csv": str(tmp_path / "gap.csv")}
    assert "missing values (a 1); fill them by data.task.interpolate=true" in error(**gap)
    filled = build_task({**config, **gap, "interpolate": True}).values
    assert bool(filled.isfinite().all())
