"""Data: splits, batches as a function of seed, epoch and sample, and what timm would make of the same image."""

import gzip
import os
import random
import shutil
import signal
import struct
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from small import FOLDER, RUN
from timm.data import create_transform
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torchvision.datasets import ImageFolder

from metamixer import ConfigError, override
from metamixer.rng import derive, permutation
from metamixer.tasks.fashion import FASHION_MNIST
from metamixer.training import images as images_module
from metamixer.training.data import Data, default_workers
from metamixer.training.datasets import open_split, read_image
from metamixer.training.images import train_transform
from metamixer.training.statistics import statistics
from metamixer.training.surroundings import SurroundingsError

SEED = derive(0, "data")


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
        **FOLDER,
        "data.root": str(folder),
        "data.image_size": 80,
        "data.val_samples": 4,
        **changes,
    }


def test_digits_are_scikit_learns_and_the_splits_do_not_meet():
    found = data({"data.image_size": 8, "data.train_samples": None})
    assert (len(found.task.trained_on), len(found.task.held_out), len(found.task.source("test"))) == (
        1297 - 64,
        64,
        500,
    )
    assert not set(found.task.trained_on) & set(found.task.held_out)
    original = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    ours = np.concatenate([found.task.source(split).images for split in ("train", "test")])
    assert sorted(image.tobytes() for image in ours) == sorted(image.tobytes() for image in original)


def test_grey_images_for_a_network_that_takes_colour():
    colour = {"data.channels": 3, "data.mean": [0.3] * 3, "data.std": [0.3] * 3}
    images, _ = next(data(colour).evaluation("test"))
    assert images.shape == (500, 3, 12, 12) and torch.equal(images[:, 0], images[:, 2])


def test_splits_do_not_depend_on_the_seed():
    one, two = data(seed=1), data(seed=2)
    assert np.array_equal(one.task.held_out, two.task.held_out)
    assert np.array_equal(one.task.source("test").labels, two.task.source("test").labels)


def test_an_epoch_takes_each_image_once_and_another_epoch_another_order():
    found = data({"recipe.rand_augment": None, "recipe.erase_prob": 0.0, "recipe.crop_scale": [1.0, 1.0],
                  "recipe.crop_ratio": [1.0, 1.0]})  # fmt: skip
    orders = [torch.cat([y for _, y in found.batches(epoch)]) for epoch in (0, 1)]
    labels = found.task.source("train").labels[found.task.trained_on]
    assert orders[0].sort().values.tolist() == sorted(labels)
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
        80, is_training=True, scale=recipe.crop_scale, ratio=recipe.crop_ratio, hflip=recipe.flip_prob,
        color_jitter=None,
        auto_augment=recipe.rand_augment, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4),
        re_prob=recipe.erase_prob, re_mode="pixel",
    )  # fmt: skip
    images, labels = next(found.batches(5))
    expected = []
    chosen = found.task.trained_on[permutation(SEED, 5, len(found.task.trained_on))][:8]
    for index in chosen:
        seed = derive(SEED, 5, int(index))
        random.seed(seed), np.random.seed(seed % 2**32), torch.manual_seed(seed)
        expected.append(transform(Image.open(found.task.source("train").where(index)).convert("RGB")))
    assert torch.equal(images, torch.stack(expected))
    assert labels.tolist() == found.task.source("train").targets[chosen].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_takes_each_image_once_however_many_workers(folder, workers):
    found = data(streamed(folder), workers=workers)
    labels = torch.cat([y for _, y in found.evaluation("test")])
    assert labels.bincount().tolist() == [3, 2, 2]
    assert sum(len(y) for _, y in found.evaluation("val")) == 4


def test_a_small_image_is_timms_transform_of_the_decoded_one():
    found = data()
    recipe = RUN.recipe
    transform = create_transform(
        12, is_training=True, scale=recipe.crop_scale, ratio=recipe.crop_ratio, hflip=0.0, color_jitter=None,
        auto_augment=recipe.rand_augment, interpolation="bicubic", mean=(0.305,), std=(0.34,),
        re_prob=recipe.erase_prob, re_mode="pixel",
    )  # fmt: skip
    images, labels = next(found.batches(5))
    source, test = (found.task.source(split) for split in ("train", "test"))
    chosen = found.task.trained_on[permutation(SEED, 5, len(found.task.trained_on))][:32]
    for image, label, index in zip(images, labels, chosen.tolist(), strict=True):
        seed = derive(SEED, 5, index)
        random.seed(seed), np.random.seed(seed % 2**32), torch.manual_seed(seed)
        original = Image.fromarray(source.images[index]).resize((12, 12), Image.Resampling.BICUBIC)
        assert torch.equal(image, transform(original)) and label == source.labels[index]
    evaluation = create_transform((1, 12, 12), mean=(0.305,), std=(0.34,), crop_pct=1.0)
    images, labels = next(found.evaluation("test"))
    originals = (Image.fromarray(image).resize((12, 12), Image.Resampling.BICUBIC) for image in test.images)
    assert torch.equal(images, torch.stack([evaluation(image) for image in originals]))
    assert labels.tolist() == test.labels.tolist()


@pytest.mark.parametrize(
    "text",
    ["", "v0", "rand-x3", "rand-m", "rand-m9.5", "rand-m9-m8", "rand-mmax5", "rand-tweights", "rand-p2", "rand-"],
)
def test_augmentations_that_timm_would_pass_over_are_refused(text):
    refused({"recipe.rand_augment": text}, "rand_augment", "rand-m9-mstd0.5-inc1", repr(text))


@pytest.mark.parametrize("size, times", [(32, 1), (80, 2)])
def test_small_images_of_a_folder_are_decoded_once(folder, monkeypatch, size, times):
    found, opened = data(streamed(folder, **{"data.image_size": size})), Counter()
    monkeypatch.setattr(images_module, "read_image", lambda *where: opened.update([where[1]]) or read_image(*where))
    expected = [list(data(streamed(folder, **{"data.image_size": size})).batches(0)) for _ in range(2)]
    assert equal(*expected)
    opened.clear()
    list(found.batches(0)), list(found.batches(0))
    assert set(opened.values()) == {times}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_in_one_line(folder, workers, tmp_path):
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
    for split, images in (("train", found.task.source("train")), ("t10k", found.task.source("test"))):
        assert np.array_equal(images.images, written[split][0])
        assert np.array_equal(images.labels, written[split][1])


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_packaged_fashion_mnist():
    found = data({"data.name": "fashion-mnist", "data.image_size": 28, "data.train_samples": None})
    assert (len(found.task.source("train")), len(found.task.source("test"))) == (60_000, 10_000)
    train = found.task.source("train")
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert train.images.mean() / 255 == pytest.approx(0.286, abs=1e-3)
    assert train.images.std() / 255 == pytest.approx(0.353, abs=1e-3)


def equal(one, two):
    return len(one) == len(two) and all(
        torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) for x, y in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("streams", [False, True])
def test_processes_share_the_passes_of_each_step(folder, streams, processes):
    changes = {"recipe.batch_size": 8, "recipe.micro_batch": 2, **(streamed(folder) if streams else {})}
    found = data(changes)
    whole = list(data({**changes, "recipe.micro_batch": None}).batches(1, 1))
    shares = [list(found.batches(1, 1, rank, processes)) for rank in range(processes)]
    per_step = 4 // processes
    assert len(whole) == found.steps - 1 > 0
    for step, (images, classes) in enumerate(whole):
        mine = [batch for share in shares for batch in share[step * per_step : (step + 1) * per_step]]
        assert torch.equal(torch.cat([x for x, _ in mine]), images) and all(len(x) == 2 for x, _ in mine)
        assert torch.equal(torch.cat([y for _, y in mine]), classes)


@pytest.mark.parametrize("streams", [False, True])
def test_processes_share_an_evaluation_without_overlap(folder, streams):
    found = data(streamed(folder) if streams else {})
    whole = torch.cat([x for x, _ in found.evaluation("test")])
    shares = [torch.cat([x for x, _ in found.evaluation("test", rank, 3)]) for rank in range(3)]
    assert torch.equal(torch.cat(shares), whole) and len(whole) == (7 if streams else 500)


def test_data_workers_live_as_long_as_the_data_and_a_new_iteration_ends_the_one_before(folder):
    alone, helped = data(streamed(folder)), data(streamed(folder), workers=2)
    expected = list(alone.batches(1))
    next(helped.batches(0))  # left in the middle
    workers = {worker.pid for worker in helped._loader.loader._iterator._workers}
    assert equal(list(helped.batches(1)), expected)
    assert equal(list(helped.evaluation("test")), list(alone.evaluation("test")))
    assert equal(list(helped.batches(1)), expected)
    assert {worker.pid for worker in helped._loader.loader._iterator._workers} == workers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_data_workers_outlive_the_signals_that_ask_a_run_to_stop(folder, number):
    found = data(streamed(folder), workers=2)
    batches = found.batches(0)
    next(batches)
    for worker in found._loader.loader._iterator._workers:
        os.kill(worker.pid, number)
    next(batches)
    assert equal(list(found.batches(1)), list(data(streamed(folder)).batches(1)))


def test_a_data_worker_that_dies_is_one_line(folder):
    found = data(streamed(folder, **{"recipe.batch_size": 2}), workers=1)
    batches = found.batches(0)
    next(batches)
    os.kill(found._loader.loader._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(ConfigError, match="a data worker died") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    assert signal.getsignal(signal.SIGCHLD) in (signal.SIG_DFL, None), "torch's handler raises in the training step"


def test_grey_images_among_coloured_ones(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    for path, mode in (("train/class0/0.png", "L"), ("train/class1/1.png", "LA"), ("validation/class0/0.png", "L")):
        Image.open(tmp_path / "copy" / path).convert(mode).save(tmp_path / "copy" / path)
    found = data(streamed(tmp_path / "copy", **{"data.val_samples": 0}))
    assert sum(len(y) for _, y in found.batches(0)) == 24 and next(found.evaluation("test"))[0].shape == (7, 3, 80, 80)
    grey = data(streamed(tmp_path / "copy", **{"data.channels": 1, "data.mean": [0.5], "data.std": [0.2]}))
    assert next(grey.batches(0))[0].shape == (8, 1, 80, 80)


def break_images(folder, *names):
    for name in names:
        (folder / name).write_bytes((folder / name).read_bytes()[:200])


BROKEN = ("train/class0/2.png", "train/class1/7.png", "train/class2/0.png", "validation/class1/1.png")


def test_broken_images_that_are_asked_to_be_skipped(folder, tmp_path):
    """In training the next whole image stands in, under the draws of the broken one; evaluation leaves it out."""
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    break_images(root, *BROKEN)
    changes = streamed(root, **{"data.val_samples": 0, "data.skip_broken": True})
    alone, helped = data(changes), data(changes, workers=2)
    expected = list(alone.batches(0))
    assert equal(list(helped.batches(0)), expected)
    assert equal(list(data(changes, workers=2).batches(0, 2)), expected[2:])
    list(alone.evaluation("test"))
    assert list(helped.broken) == list(data_broken(changes)) and set(alone.broken) == {str(root / n) for n in BROKEN}

    paths = [alone.task.source("train").where(i) for i in range(24)]
    assert [paths.index(str(root / name)) for name in BROKEN[:3]] == [2, 15, 16]
    stand_ins = {2: 3, 15: 17, 16: 17}  # 15 and 16 are neighbours
    transform = create_transform(
        80, is_training=True, scale=(0.6, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.0, color_jitter=None,
        auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4),
        re_prob=0.25, re_mode="pixel",
    )  # fmt: skip
    order = alone.task.trained_on[permutation(SEED, 0, 24)]
    images, classes = (torch.cat(parts) for parts in zip(*expected, strict=True))
    for index, stand_in in stand_ins.items():
        place = order.tolist().index(index)
        seed = derive(SEED, 0, index)
        random.seed(seed), np.random.seed(seed % 2**32), torch.manual_seed(seed)
        assert torch.equal(images[place], transform(Image.open(paths[stand_in]).convert("RGB")))
        assert classes[place] == stand_in // 8
    whole = data(streamed(folder))
    left = torch.cat([x for x, _ in whole.evaluation("test")])[[0, 1, 2, 3, 5, 6]]
    assert torch.equal(torch.cat([x for x, _ in alone.evaluation("test")]), left)


def data_broken(changes):
    found = data(changes)
    list(found.batches(0))
    return found.broken


def test_a_stand_in_is_never_a_held_out_image(folder, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    changes = streamed(root, **{"data.val_samples": 12, "data.skip_broken": True})
    found = data(changes)
    following = {int(i): int(j) for i, j in zip(found.task.trained_on, np.roll(found.task.trained_on, -1), strict=True)}
    index = next(i for i in following if i + 1 in found.task.held_out)
    Image.new("RGB", (80, 80), (255, 0, 0)).save(found.task.source("train").where(following[index]))
    break_images(root, os.path.relpath(found.task.source("train").where(index), root))
    list(found.batches(0))
    image, label = found.task.training_image(index)
    assert image.getpixel((0, 0)) == (255, 0, 0) and label == following[index] // 8


def test_broken_images_in_memory_are_skipped_alike(folder, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    break_images(root, *BROKEN)
    changes = streamed(root, **{"data.image_size": 32, "data.val_samples": 0})
    with pytest.raises(ConfigError, match=r"class\d/\d\.png: broken image .*skip_broken"):
        list(data(changes).batches(0))
    found = data({**changes, "data.skip_broken": True})
    whole = data({**changes, "data.root": str(folder)})
    list(found.batches(0)), list(found.evaluation("test"))
    assert set(found.broken) == {str(root / n) for n in BROKEN}
    for index, stand_in in ((2, 3), (15, 17), (16, 17), (5, 5)):
        image, label = found.task.training_image(index)
        assert image.tobytes() == whole.task.training_image(stand_in)[0].tobytes() and label == stand_in // 8
    kept = torch.cat([x for x, _ in whole.evaluation("test")])[[0, 1, 2, 3, 5, 6]]
    assert torch.equal(next(found.evaluation("test"))[0], kept)


def test_a_file_that_cannot_be_read_is_not_a_broken_image(folder, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    found = data(streamed(root, **{"data.skip_broken": True, "data.val_samples": 0}))
    (root / BROKEN[0]).unlink()  # as a network disk that is away for a while
    with pytest.raises(SurroundingsError, match=r"class0/2\.png: cannot be read \(No such file"):
        list(found.batches(0))


def pack(folder, root, form):
    """The same images as tar files: one a split, shards of both, or a tar file a class within one."""
    root.mkdir()
    for split in ("train", "validation"):
        paths = sorted((folder / split).glob("*/*.png"))
        if form == "one":
            with tarfile.open(root / f"{split}.tar", "w") as tar:
                for path in paths:
                    tar.add(path, path.relative_to(folder / split))
        elif form == "shards":
            (root / split).mkdir()
            for shard in range(3):
                with tarfile.open(root / split / f"shard-{shard}.tar", "w") as tar:
                    for path in paths[shard::3]:
                        tar.add(path, path.relative_to(folder / split))
        else:
            with tarfile.open(root / f"{split}.tar", "w") as tar:
                for c in range(3):
                    with tarfile.open(root / f"class{c}.tar", "w") as inner:
                        for path in paths:
                            if path.parent.name == f"class{c}":
                                inner.add(path, path.name)
                    tar.add(root / f"class{c}.tar", f"class{c}.tar")
                    (root / f"class{c}.tar").unlink()
    return root


@pytest.mark.parametrize("form", ["one", "shards"])
def test_tar_files_give_the_batches_of_the_folder(folder, tmp_path, form):
    root = pack(folder, tmp_path / "tars", form)
    assert equal(list(data(streamed(root), workers=2).batches(0)), list(data(streamed(folder)).batches(0)))
    assert equal(list(data(streamed(root)).evaluation("test")), list(data(streamed(folder)).evaluation("test")))


@pytest.mark.parametrize("form", ["one", "shards", "nested"])
def test_images_in_tar_files_are_those_that_timm_reads(folder, tmp_path, form):
    root = pack(folder, tmp_path / "tars", form)
    found = data(streamed(root)).task.source("train")
    place = root / "train" if form == "shards" else root / "train.tar"
    reader = ReaderImageInTar(str(place))
    assert len(found) == len(reader) == 24

    def image(opened, label):
        return label, Image.open(opened).tobytes()

    ours = [image(*found.open(i)) for i in range(24)]
    assert ours == sorted(ours, key=lambda row: row[0]) and [label for label, _ in ours] == sorted([0, 1, 2] * 8)
    assert sorted(ours) == sorted(image(*reader[i]) for i in range(24))


def test_a_broken_image_in_a_tar_file_is_named_with_it(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    break_images(tmp_path / "copy", "train/class1/3.png")
    root = pack(tmp_path / "copy", tmp_path / "tars", "one")
    with pytest.raises(ConfigError, match=r"tars/train\.tar: class1/3\.png: broken image"):
        list(data(streamed(root, **{"data.val_samples": 0})).batches(0))


def idx(path, values):
    head = struct.pack(">I", 2048 + values.ndim) + b"".join(struct.pack(">I", n) for n in values.shape)
    path.write_bytes(head + values.tobytes())


@pytest.mark.parametrize("side", [28, 72])
def test_a_data_set_that_timm_opens(tmp_path, side):
    """torchvision's MNIST from files written here by their description (yann.lecun.com/exdb/mnist)."""
    rng = np.random.default_rng(2)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for split, count in (("train", 40), ("t10k", 9)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        idx(tmp_path / "MNIST" / "raw" / f"{split}-images-idx3-ubyte", images)
        idx(tmp_path / "MNIST" / "raw" / f"{split}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    changes = {"data.name": "torch/mnist", "data.root": str(tmp_path), "data.image_size": side,
               "data.train_samples": None, "data.val_samples": 0, "recipe.batch_size": 8}  # fmt: skip
    found = data(changes, workers=2)
    assert torch.cat([y for _, y in found.evaluation("test")]).tolist() == list(range(9))
    assert torch.cat([y for _, y in found.batches(0)]).bincount().tolist() == [4] * 10
    last = [np.asarray(found.task.source("test").open(i)[0]) for i in range(9)]
    assert np.array_equal(last, images)  # the last split written


def test_of_a_set_without_validation_the_test_split_is_evaluated(folder, monkeypatch):
    """As `datasets` 5.2 refuses a split; it was tried with that package, which the environment does not have."""
    asked = []

    def create(name, root, split, is_training=False):
        asked.append(split)
        if split == "validation":
            raise ValueError("Unknown split \"validation\". Should be one of ['train', 'test'].")
        return ImageFolder(folder / "validation")

    monkeypatch.setattr("metamixer.training.datasets.create_dataset", create)
    config = override(RUN, streamed(folder, **{"data.name": "hfds/mine", "data.num_classes": 3})).data
    assert len(open_split(config, "test")) == 7 and asked == ["validation", "test"]


def test_a_torchvision_folder_is_the_same_as_ours(folder):
    ours, theirs = data(streamed(folder)).task.source("train"), ImageFolder(folder / "train")
    assert ours.names == theirs.classes
    assert [(ours.where(i), ours.targets[i]) for i in range(24)] == theirs.samples


def refused(changes, *parts):
    with pytest.raises(ConfigError) as caught:
        data(changes)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


@pytest.mark.parametrize("name", ["wds/imagenet", "tfds/mnist", "hfids/mnist"])
def test_data_that_is_read_front_to_back_is_refused_with_what_to_use(folder, name):
    refused(streamed(folder, **{"data.name": name}), "front to back", "data.name=folder", "hfds/")


@pytest.mark.parametrize("name", ["nope", "fashion_mnist", "images/nope", "hfds"])
def test_names_that_timm_would_take_for_a_folder_are_refused_with_those_there_are(folder, name):
    refused(
        streamed(folder, **{"data.name": name}), f"data.name: no data set {name!r}; there are digits, fashion-mnist"
    )


def test_too_few_classes_are_refused_with_what_to_set():
    refused({"data.num_classes": 9}, "'digits' has 10 classes, num_classes is 9: set data.num_classes=10")


def test_data_that_is_not_there(folder, tmp_path):
    refused(streamed(folder, **{"data.name": "torch/mnist", "data.root": str(tmp_path)}), "torch/mnist", "not found")
    refused(streamed(folder, **{"data.name": "torch/mnist", "data.root": None}), "'torch/mnist' needs data.root")
    refused(streamed(folder, **{"data.name": "torch/nothing"}), "Unknown torchvision dataset")


def test_a_test_folder_is_the_test_split(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    os.rename(tmp_path / "copy" / "validation", tmp_path / "copy" / "test")
    changes = streamed(tmp_path / "copy")
    assert equal(list(data(changes).evaluation("test")), list(data(streamed(folder)).evaluation("test")))


def test_evaluation_alone_needs_no_training_images(folder, tmp_path):
    shutil.copytree(folder / "validation", tmp_path / "alone" / "val")
    config = override(RUN, streamed(tmp_path / "alone")).data
    assert equal(list(Data(config, None).evaluation("test")), list(data(streamed(folder)).evaluation("test")))


def test_too_many_small_images_for_memory_are_streamed(folder, monkeypatch):
    monkeypatch.setattr(images_module, "IN_MEMORY_BYTES", 24 * 3 * 32 * 32 - 1)
    found = data(streamed(folder, **{"data.image_size": 32}), workers=1)
    assert next(found.batches(0))[0].shape == (8, 3, 32, 32)
    assert found.task.training_image(0)[0].size == (90, 70)  # as it lies there


@pytest.mark.parametrize(
    "cores, gpu, size, processes, expected",
    [(16, False, 28, 1, 0), (16, True, 28, 1, 16), (16, True, 256, 1, 16), (16, True, 256, 4, 4),
     (64, True, 256, 1, 16), (2, True, 256, 8, 1), (16, False, 256, 1, 4), (2, False, 256, 1, 0)],
)  # fmt: skip
def test_data_workers_by_the_cores(monkeypatch, cores, gpu, size, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    config = override(RUN, {"data.image_size": size}).data
    assert default_workers(config, "auto", processes) == expected


@pytest.mark.parametrize("rand_augment", [None, "rand-m9-mstd0.5-inc1"])
@pytest.mark.parametrize("strength", [0.0, 0.4])
def test_colour_jitter_depends_on_its_own_key_alone(rand_augment, strength):
    recipe = override(RUN.recipe, {"rand_augment": rand_augment, "color_jitter": strength})
    steps = [type(step).__name__ for step in train_transform(RUN.data, recipe).transforms]
    assert ("ColorJitter" in steps) == (strength > 0) and ("RandAugment" in steps) == (rand_augment is not None)


def test_statistics_are_those_of_the_images_whatever_they_are_normalised_by():
    config = override(RUN, {"recipe.micro_batch": None})
    (mean,), (std,) = statistics(config, 160)
    other = override(config, {"data.mean": [0.0], "data.std": [1.0]})
    assert statistics(other, 160) == ([pytest.approx(mean, abs=1e-6)], [pytest.approx(std, abs=1e-6)])
    digits = load_digits().images / 16  # all of them, before they are enlarged
    assert mean == pytest.approx(digits.mean(), abs=0.02) and std == pytest.approx(digits.std(), abs=0.05)
