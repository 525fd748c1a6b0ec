"""Data: splits, batches as a function of seed, epoch and sample, and what timm would make of the same image."""

import gzip
import random
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from small import RUN
from timm.data import create_transform

from metamixer import ConfigError, override
from metamixer.draws import derive
from metamixer.training.data import FASHION_MNIST, Data


def data(changes=None, seed=0, workers=0):
    config = override(RUN, changes or {})
    return Data(config.data, config.recipe, seed, workers)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 training and 7 test images of 70 to 90 px, three classes; an odd number on purpose."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("validation", 3)):
        for c in range(3):
            (root / split / f"class{c}").mkdir(parents=True)
            for i in range(count - (split == "validation" and c > 0)):
                pixels = rng.integers(0, 256, (70 + i, 90 - i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{c}" / f"{i}.png")
    return root


def streamed(folder, **changes):
    return {
        "data.name": "folder",
        "data.root": str(folder),
        "data.image_size": 80,
        "data.channels": 3,
        "data.mean": [0.5, 0.4, 0.3],
        "data.std": [0.2, 0.3, 0.4],
        "data.num_classes": 3,
        "data.train_samples": None,
        "data.val_samples": 4,
        "recipe.batch_size": 8,
        **changes,
    }


def test_digits_are_scikit_learns_and_the_splits_do_not_meet():
    found = data({"data.image_size": 8, "data.train_samples": None})
    assert (len(found.train_indices), len(found.val_indices), len(found.test)) == (1297 - 64, 64, 500)
    assert not set(found.train_indices) & set(found.val_indices)
    original = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    ours = torch.cat([found.train.images, found.test.images])[:, 0].numpy()
    assert sorted(image.tobytes() for image in ours) == sorted(image.tobytes() for image in original)


def test_splits_do_not_depend_on_the_seed():
    one, two = data(seed=1), data(seed=2)
    assert np.array_equal(one.val_indices, two.val_indices) and torch.equal(one.test.labels, two.test.labels)


def test_an_epoch_takes_each_image_once_and_another_epoch_another_order():
    found = data({"recipe.rand_augment": None, "recipe.erase": 0.0, "recipe.crop_scale": [1.0, 1.0],
                  "recipe.crop_ratio": [1.0, 1.0]})  # fmt: skip
    orders = [torch.cat([y for _, y in found.batches(epoch)]) for epoch in (0, 1)]
    assert torch.equal(orders[0].sort().values, found.train.labels[found.train_indices].sort().values)
    assert not torch.equal(*orders)


@pytest.mark.parametrize("first", [1, 4])
def test_batches_from_the_middle_of_an_epoch_are_the_same(first):
    whole, rest = list(data().batches(3)), list(data().batches(3, first))
    assert len(rest) == 5 - first
    assert all(torch.equal(a, b) for pair in zip(whole[first:], rest, strict=True) for a, b in zip(*pair, strict=True))


def test_workers_and_restarts_do_not_change_a_streamed_batch(folder):
    alone, helped = (list(data(streamed(folder), workers=n).batches(2)) for n in (0, 2))
    assert len(alone) == 2 and alone[0][0].shape == (8, 3, 80, 80)
    assert all(torch.equal(a, b) for pair in zip(alone, helped, strict=True) for a, b in zip(*pair, strict=True))
    second = next(data(streamed(folder), workers=2).batches(2, 1))
    assert torch.equal(second[0], alone[1][0])
    assert not torch.equal(next(data(streamed(folder)).batches(3))[0], alone[0][0])


def test_a_streamed_image_is_timms_transform_with_the_samples_own_seed(folder):
    found = data(streamed(folder))
    recipe = override(RUN, streamed(folder)).recipe
    transform = create_transform(
        80, is_training=True, scale=recipe.crop_scale, ratio=recipe.crop_ratio, hflip=recipe.flip, color_jitter=None,
        auto_augment=recipe.rand_augment, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4),
        re_prob=recipe.erase, re_mode="pixel",
    )  # fmt: skip
    images, labels = next(found.batches(5))
    expected = []
    from metamixer.draws import permutation

    chosen = found.train_indices[permutation(found.seed, 5, len(found.train_indices))][:8]
    for index in chosen:
        path, _ = found.train.reader.samples[index]
        seed = derive(found.seed, 5, int(index))
        random.seed(seed), np.random.seed(seed % 2**32), torch.manual_seed(seed)
        expected.append(transform(Image.open(path).convert("RGB")))
    assert torch.equal(images, torch.stack(expected))
    assert labels.tolist() == [found.train.reader.samples[i][1] for i in chosen]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_takes_each_image_once_however_many_workers(folder, workers):
    found = data(streamed(folder), workers=workers)
    labels = torch.cat([y for _, y in found.evaluation("test")])
    assert labels.bincount().tolist() == [3, 2, 2]
    assert sum(len(y) for _, y in found.evaluation("val")) == 4


def test_small_images_of_a_folder_are_decoded_once(folder):
    found = data(streamed(folder, **{"data.image_size": 32}))
    assert found.in_memory and found.train.images.shape == (24, 3, 32, 32)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_in_one_line(folder, workers, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    broken = tmp_path / "copy" / "train" / "class1" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    found = data(streamed(tmp_path / "copy", **{"data.val_samples": 0}), workers=workers)
    with pytest.raises(ConfigError, match=r"class1/3\.png: broken image") as caught:
        list(found.batches(0))
    assert "\n" not in str(caught.value)


def test_too_few_images_for_a_batch():
    with pytest.raises(ConfigError, match="fewer than one batch of 512"):
        data({"recipe.batch_size": 512})


def test_fashion_mnist_from_its_idx_files(tmp_path):
    """The format is read from files written here by its description (arXiv 1708.07747's repository)."""
    rng = np.random.default_rng(1)
    written = {}
    for split, count in (("train", 40), ("t10k", 9)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        written[split] = images, labels
        with gzip.open(tmp_path / f"{split}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes())
        with gzip.open(tmp_path / f"{split}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">II", 2049, count) + labels.tobytes())
    found = data({"data.name": "fashion-mnist", "data.root": str(tmp_path), "data.image_size": 28,
                  "data.train_samples": None, "data.val_samples": 0, "recipe.batch_size": 8})  # fmt: skip
    for split, images in (("train", found.train), ("t10k", found.test)):
        assert np.array_equal(images.images[:, 0].numpy(), written[split][0])
        assert np.array_equal(images.labels.numpy(), written[split][1])


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_packaged_fashion_mnist():
    found = data({"data.name": "fashion-mnist", "data.image_size": 28, "data.train_samples": None})
    assert (len(found.train), len(found.test)) == (60_000, 10_000)
    assert found.train.labels.bincount().tolist() == [6000] * 10
    assert found.train.images.float().mean() / 255 == pytest.approx(0.286, abs=1e-3)
    assert found.train.images.float().std() / 255 == pytest.approx(0.353, abs=1e-3)
