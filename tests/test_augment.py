"""The batched augmentation against Pillow and timm: operations, crops, erasing, draws, determinism."""

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits, load_sample_images
from timm.data import auto_augment, create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor

from metamixer.config import override
from metamixer.recipes import DIGITS
from metamixer.rng import uniforms
from metamixer.training import augment
from metamixer.training.augment import BatchAugment, normalise, resize
from metamixer.training.randaugment import OP_NAMES, RandAugment, apply_ops, parse_rand_augment
from metamixer.training.recipe import Recipe

RECIPE = "rand-m9-mstd0.5-inc1"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())


def from_pillow(image: Image.Image) -> Tensor:
    pixels = np.array(image)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1)


def photos() -> Tensor:
    """(60, 3, 32, 32) uint8: crops of two photographs at many scales."""
    draw, crops = np.random.default_rng(0), []
    for photo in load_sample_images().images:
        for _ in range(30):
            side = draw.integers(32, 400)
            top, left = draw.integers(0, 427 - side), draw.integers(0, 640 - side)
            crop = Image.fromarray(photo[top : top + side, left : left + side])
            crops.append(from_pillow(crop.resize((32, 32), Image.Resampling.BICUBIC)))
    return torch.stack(crops)


def digits() -> Tensor:
    """(60, 1, 28, 28) uint8: handwritten digits, 60 of them enlarged from 8 × 8."""
    scans = [Image.fromarray((scan * 15.9).astype(np.uint8)) for scan in load_digits().images[:60]]
    return torch.stack([from_pillow(scan.resize((28, 28), Image.Resampling.BICUBIC)) for scan in scans])


IMAGES = {"photos": photos(), "digits": digits()}
each_kind = pytest.mark.parametrize("kind", IMAGES)


FULL = Recipe()
PLAIN = {"crop_scale": (1.0, 1.0), "flip_prob": 0.0, "rand_augment": None, "erase_prob": 0.0}


def make(kind: str = "photos", size: int = 32, seed: int = 42, **changes: Any) -> BatchAugment:
    """The full recipe with changes, for images of this kind."""
    statistics = {"mean": changes.pop("mean", MEAN), "std": changes.pop("std", STD)}
    channels = IMAGES[kind].shape[1]
    statistics = {name: list(values[:channels]) for name, values in statistics.items()}
    data = override(DIGITS, {"channels": channels, "image_size": size, **statistics})
    return BatchAugment(data, override(FULL, changes), seed)


def make_for(kind: str, **changes: Any) -> BatchAugment:
    return make(kind, IMAGES[kind].shape[2], **changes)


# Operation, timm's function, the range of its argument, the share of pixels that may be one level off.
OPS: list[tuple[str, Callable, Any, float]] = [
    ("AutoContrast", auto_augment.auto_contrast, None, 0),
    ("Equalize", auto_augment.equalize, None, 0),
    ("Invert", auto_augment.invert, None, 0),
    ("Posterize", auto_augment.posterize, (1, 5), 0),
    ("Solarize", auto_augment.solarize, (0, 257), 0),
    ("SolarizeAdd", auto_augment.solarize_add, (0, 111), 0),
    ("Color", auto_augment.color, (0.1, 1.9), 0),
    ("Contrast", auto_augment.contrast, (0.1, 1.9), 0),
    ("Brightness", auto_augment.brightness, (0.1, 1.9), 0),
    ("Sharpness", auto_augment.sharpness, (0.1, 1.9), 0),
    ("Rotate", auto_augment.rotate, (-30.0, 30.0), 0.01),
    ("ShearX", auto_augment.shear_x, (-0.3, 0.3), 0.01),
    ("ShearY", auto_augment.shear_y, (-0.3, 0.3), 0.01),
    ("TranslateX", auto_augment.translate_x_rel, (-0.45, 0.45), 0.01),
    ("TranslateY", auto_augment.translate_y_rel, (-0.45, 0.45), 0.01),
]


@each_kind
@pytest.mark.parametrize(("name", "function", "limits", "share"), OPS, ids=[op[0] for op in OPS])
def test_op_equals_timm(kind: str, name: str, function: Callable, limits: Any, share: float) -> None:
    images = IMAGES[kind]
    fill = (124, 116, 104)[: images.shape[1]]
    draw = np.random.default_rng(1)
    low, high = limits or (0, 1)
    arguments = (draw.integers if isinstance(low, int) else draw.uniform)(low, high, len(images))
    kwargs = {"fillcolor": fill, "resample": Image.Resampling.BICUBIC}
    pairs = zip(images, arguments.tolist(), strict=True)
    expected = torch.stack([from_pillow(function(to_pillow(x), *([a] if limits else []), **kwargs)) for x, a in pairs])
    result = images.clone()
    ops = np.full(len(images), OP_NAMES.index(name))
    apply_ops(result, ops, arguments.astype(np.float64), torch.tensor(fill, dtype=torch.uint8))
    difference = (result.int() - expected.int()).abs()
    assert difference.max() <= (share > 0)
    assert (difference > 0).float().mean() <= share


@pytest.mark.parametrize("name", OP_NAMES)
def test_op_handles_constant_and_two_level_images(name: str) -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[1], images[2, :, 2:4], images[3, :, 0, 0] = 255, 200, 7
    function, limits = {op[0]: op[1:3] for op in OPS}[name]
    argument = {"Posterize": 2, "Solarize": 128, "SolarizeAdd": 60, "Rotate": 0.0}.get(name, 0.25)
    kwargs = {"fillcolor": (9, 9, 9), "resample": Image.Resampling.BICUBIC}
    expected = torch.stack(
        [from_pillow(function(to_pillow(x), *([argument] if limits else []), **kwargs)) for x in images]
    )
    apply_ops(images, np.full(4, OP_NAMES.index(name)), np.full(4, float(argument)), torch.full((3,), 9).byte())
    assert (images.int() - expected.int()).abs().max() <= 1
    torch.testing.assert_close(images[:2], expected[:2], rtol=0, atol=0)  # flat areas are exact


def test_posterize_to_no_bits_is_black() -> None:
    images = IMAGES["photos"].clone()
    apply_ops(images, np.full(60, OP_NAMES.index("Posterize")), np.zeros(60), torch.zeros(3).byte())
    assert not images.any()


@each_kind
@pytest.mark.parametrize("size", [1, 7, 16, 28, 32, 48, 64])
def test_resize_equals_pillow(kind: str, size: int) -> None:
    images = IMAGES[kind][:20, :, 2:]  # not square
    expected = [to_pillow(image).resize((size, size), Image.Resampling.BICUBIC) for image in images]
    assert torch.equal(resize(images, size), torch.stack([from_pillow(image) for image in expected]))


@each_kind
def test_crop_equals_pillow(kind: str) -> None:
    """Weights of 15 bits, Pillow's have 22: one grey level, on fewer than one pixel in 200."""
    images, draw = IMAGES[kind], np.random.default_rng(2)
    side = images.shape[2]
    for size in (side, side // 2, side + 9):
        weights, expected = augment._crop_weights(side, size), []
        sides = draw.integers(1, side + 1, (60, 2))
        places = draw.integers(0, side + 1 - sides)
        for image, (tall, wide), (top, left) in zip(images, sides, places, strict=True):
            crop = to_pillow(image).crop((left, top, left + wide, top + tall))
            expected.append(from_pillow(crop.resize((size, size), Image.Resampling.BICUBIC)))
        vertical = torch.from_numpy(weights[sides[:, 0], places[:, 0]])
        horizontal = torch.from_numpy(weights[sides[:, 1], places[:, 1]])
        difference = augment._resample(images, vertical, horizontal).int() - torch.stack(expected).int()
        assert difference.abs().max() <= 2  # one level between the passes can become two
        assert (difference.abs() > 1).float().mean() < 1e-4
        assert (difference != 0).float().mean() < 5e-3


def test_crop_sums_are_exact() -> None:
    for length, size in ((32, 32), (28, 40), (64, 32)):
        weights = augment._crop_weights(length, size)
        for crop in range(1, length + 1):
            steps = weights[crop, 0] * 2.0**15
            assert (steps == np.rint(steps)).all()
            assert (steps.sum(1) == 2**15).all()
            assert np.abs(steps).sum(1).max() * 255 < 2**24


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 64)])
def test_crop_boxes_are_drawn_as_in_timm(height: int, width: int) -> None:
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    draws = uniforms(0, 0, np.arange(4000), 22)
    boxes = augment._random_boxes(draws, (height, width), (height, width), scale, ratio)
    boxes[boxes[:, 2] == 0] = augment._central_crop(height, width, ratio)
    random.seed(0)
    image = Image.new("L", (width, height))
    get_params = RandomResizedCropAndInterpolation.get_params
    expected = np.array([get_params(image, scale, ratio) for _ in range(4000)])
    assert (boxes[:, :2] + boxes[:, 2:] <= (height, width)).all()
    same_distribution(boxes.T, expected.T)
    same_distribution([boxes[:, 2] / boxes[:, 3]], [expected[:, 2] / expected[:, 3]])


def same_distribution(ours: object, theirs: object) -> None:
    for mine, other in zip(ours, theirs, strict=True):  # type: ignore[call-overload]
        assert stats.ks_2samp(mine, other).pvalue > 1e-3


def test_flip_flips_half() -> None:
    images = IMAGES["photos"][:1].expand(2000, -1, -1, -1)
    result = make(**{**PLAIN, "flip_prob": 0.5})(images, 0, np.arange(2000))
    plain = normalise(images[:1], MEAN, STD)
    straight, flipped = ((result == x).all((1, 2, 3)) for x in (plain, plain.flip(-1)))
    assert (straight ^ flipped).all() and 900 < flipped.sum() < 1100


def erased_boxes(mask: Any) -> np.ndarray:
    """(erased, 4) as top, left, height, width, of masks (B, S, S)."""
    mask = mask[mask.any((1, 2))]
    rows, columns = mask.any(2), mask.any(1)
    assert (mask == rows[:, :, None] & columns[:, None, :]).all()  # rectangles
    return np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], 1)


def test_erasing_is_distributed_as_in_timm() -> None:
    n = 8000
    zeros = torch.zeros(n, 3, 32, 32, dtype=torch.uint8)
    eraser = make(**{**PLAIN, "erase_prob": 0.25, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    result = eraser(zeros, 0, np.arange(n))
    random.seed(0)
    torch.manual_seed(0)
    timm_erasing = RandomErasing(0.25, mode="pixel", max_count=1, device="cpu")
    expected = timm_erasing(torch.zeros(n, 3, 32, 32))
    ours, theirs = (erased_boxes((x != 0).all(1).numpy()) for x in (result, expected))
    assert abs(len(ours) / n - 0.25) < 0.02
    same_distribution(ours.T, theirs.T)
    same_distribution([ours[:, 2] * ours[:, 3]], [theirs[:, 2] * theirs[:, 3]])
    same_distribution([ours[:, 2] / ours[:, 3]], [theirs[:, 2] / theirs[:, 3]])
    values = result[result != 0]
    assert stats.kstest(values[:20000].numpy(), "norm").pvalue > 1e-3
    assert (result[:, 0] * result[:, 1]).sum().abs() / (result[:, 0] != 0).sum() < 0.01  # channels are apart


@pytest.mark.parametrize("text", [RECIPE, "rand-m9-mstd0.5", "rand-m7-mstd101-inc1", "rand-m4-n1-p1"])
def test_ops_and_arguments_are_drawn_as_in_timm(text: str) -> None:
    policy = parse_rand_augment(text)
    theirs = auto_augment.rand_augment_transform(text, {"img_mean": (0, 0, 0)})
    draws = uniforms(1, 0, np.arange(30000), policy.layers * 4).reshape(30000, policy.layers, 4)
    ops, arguments = policy.draw(draws)
    assert ops.shape == arguments.shape == (30000, theirs.num_layers)
    pairs = np.bincount((ops + 1) @ 16 ** np.arange(policy.layers), minlength=16**policy.layers)
    chances = np.array([1 - theirs.ops[0].prob] + [theirs.ops[0].prob / 15] * 15)
    expected = chances if policy.layers == 1 else np.outer(chances, chances).ravel()
    possible = expected > 0  # layers are independent
    assert stats.chisquare(pairs[possible], 30000 * expected[possible]).pvalue > 1e-3
    random.seed(0)
    for timm_op in theirs.ops:
        name = timm_op.name.removesuffix("Increasing").removesuffix("Rel")
        mine = arguments[ops == OP_NAMES.index(name)]
        drawn: list[float] = []

        def record(image: object, *arguments: float, to: list[float] = drawn, **_: object) -> object:
            to.append(arguments[0] if arguments else 0.0)
            return image

        timm_op.aug_fn, timm_op.prob = record, 1.0
        for _ in range(3000):
            timm_op(None)
        same_distribution([mine], [drawn])


def test_recipe_parses() -> None:
    recipe = {"magnitude": 9, "magnitude_std": 0.5, "layers": 2, "probability": 0.5, "increasing": True}
    assert dataclasses.asdict(parse_rand_augment(RECIPE)) == recipe
    assert parse_rand_augment("rand") == RandAugment()
    other = RandAugment(layers=3, probability=0.7, magnitude_std=math.inf)
    assert parse_rand_augment("rand-n3-p0.7-mstd200-inc0") == other


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v0",
        "rand-x3",
        "rand-m",
        "rand-m9.5",
        "rand-m9-m8",
        "rand-mmax5",
        "rand-tweights",
        "rand-p2",
        "rand-",
    ],
)
def test_other_policies_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rand_augment") as caught:
        parse_rand_augment(text)
    assert "\n" not in str(caught.value)


def test_normalise_equals_timm() -> None:
    images = IMAGES["photos"]
    transform = create_transform((3, 32, 32), mean=MEAN, std=STD, crop_pct=1.0)
    result = normalise(images, MEAN, STD)
    assert torch.equal(result, torch.stack([transform(to_pillow(image)) for image in images]))
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(make(**PLAIN)(images, 0, np.arange(60)), result)


VARIANTS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "jitter": {"rand_augment": None, "color_jitter": 0.4},
    "both": {"color_jitter": 0.4},
    "gentle": {"rand_augment": "rand-m5", "erase_prob": 0.0},
}


@each_kind
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_pipeline_has_the_moments_of_timm(kind: str, changes: dict[str, Any]) -> None:
    images, repeats = IMAGES[kind], 16
    batch_augment = make_for(kind, **changes)
    data, recipe = batch_augment.data, batch_augment.recipe
    erasing = {"re_prob": recipe.erase_prob, "re_mode": "pixel"}
    colour = {"auto_augment": recipe.rand_augment, "color_jitter": recipe.color_jitter or None}
    colour["force_color_jitter"] = True
    scale = {"mean": data.mean, "std": data.std, "interpolation": "bicubic"}
    transform = transforms_imagenet_train(data.image_size, **scale, **colour, **erasing)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    moments: list[tuple[Tensor, ...]] = []
    for epoch in range(repeats):
        ours = batch_augment(images, epoch, np.arange(len(images)))
        theirs = torch.stack([transform(to_pillow(image)) for image in images])
        pair = [(x.mean((1, 2, 3)), x.var((1, 2, 3)), x.diff(dim=3).abs().mean((1, 2, 3))) for x in (ours, theirs)]
        moments.append(tuple(a - b for a, b in zip(*pair, strict=True)))
    for difference in zip(*moments, strict=True):  # paired by image: mean, variance, roughness
        values = torch.cat(difference).numpy()
        assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))


def test_five_thousand_images_pass_the_recipe() -> None:
    policy = parse_rand_augment(RECIPE)
    draws = uniforms(augment.derive(42, "augment", "ops"), 0, np.arange(5000), 8)
    ops, arguments = policy.draw(draws.reshape(-1, 2, 4))
    assert ((ops == OP_NAMES.index("Posterize")) & (arguments == 0)).any()  # Pillow 13 raises here
    augmented, images = make(), IMAGES["photos"].repeat(9, 1, 1, 1)[:500]
    for start in range(0, 5000, 500):
        result = augmented(images, 0, np.arange(start, start + 500))
        assert torch.isfinite(result).all() and result.shape == (500, 3, 32, 32)
        assert result.is_contiguous(memory_format=torch.channels_last)


@each_kind
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_result_does_not_depend_on_the_batch(kind: str, changes: dict[str, object]) -> None:
    """Bit for bit: a batch of 60, 60 batches of one, and a shuffled batch; the input is left alone."""
    images, indices, batch_augment = IMAGES[kind], np.arange(1000, 1060), make_for(kind, **changes)
    before = images.clone()
    for epoch in range(3):
        whole = batch_augment(images, epoch, indices)
        singles = [batch_augment(images[i : i + 1], epoch, indices[i : i + 1]) for i in range(60)]
        assert torch.equal(whole, torch.cat(singles))
        order = np.random.default_rng(epoch).permutation(60)
        assert torch.equal(whole[order], batch_augment(images[order], epoch, indices[order]))
        strided = images.contiguous(memory_format=torch.channels_last)
        assert torch.equal(whole, batch_augment(strided, epoch, indices))
    assert torch.equal(images, before)


def test_seed_epoch_and_index_each_change_the_draws() -> None:
    images = IMAGES["photos"][:1].expand(100, -1, -1, -1)
    draws = [(42, 0, 0), (42, 1, 0), (43, 0, 0), (42, 0, 100)]
    results = [make(seed=seed)(images, epoch, np.arange(100) + first) for seed, epoch, first in draws]
    assert torch.equal(results[0], make()(images, 0, np.arange(100)))
    assert len(torch.unique(torch.cat(results).flatten(1), dim=0)) == 400


def test_size_changes_and_sides_may_differ() -> None:
    images = torch.randint(0, 256, (8, 3, 40, 24), dtype=torch.uint8)
    assert make(size=28)(images, 0, np.arange(8)).shape == (8, 3, 28, 28)
    whole = make(size=20, **{**PLAIN, "crop_ratio": (0.1, 10.0)})
    assert whole(images, 0, np.arange(8)).shape == (8, 3, 20, 20)
