"""Folders of images: which files are samples, how classes are numbered, and what a changed folder is refused for."""

import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from small import FOLDER, RUN

from metamixer import ConfigError, digest, override
from metamixer.config import parse
from metamixer.networks import find_network
from metamixer.training.data import Data
from metamixer.training.image_source import class_order
from metamixer.training.images import ImageClasses
from metamixer.training.learner import Learner
from metamixer.training.score import score
from metamixer.training.train import Interrupted, train


def tree(root, files):
    """Images by path; each is of one grey, which grows with its place in the list."""
    for level, name in enumerate(files):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 80), (level * 5,) * 3).save(root / name)
    return root


def images(split, *classes, count=4, suffix="png"):
    return [f"{split}/{name}/{i}.{suffix}" for name in classes for i in range(count)]


def configure(root, classes=3, **changes):
    """A data set whose images are streamed and left as they are."""
    return override(
        RUN,
        {
            **FOLDER,
            "data.root": str(root),
            "data.image_size": 80,
            "data.num_classes": classes,
            "data.val_samples": 0,
            "recipe.batch_size": 4,
            "data.mean": [0.0] * 3,
            "data.std": [1.0] * 3,
            **changes,
        },
    )


def data(root, classes=3, **changes):
    run = configure(root, classes, **changes)
    return Data(run.data, run.recipe)


def evaluated(found):
    """(grey level / 5, class) of each evaluation image."""
    return [
        (round(x.mean().item() * 51), int(y))
        for xs, ys in found.evaluation("test")
        for x, y in zip(xs, ys, strict=True)
    ]


def refused(root, *parts, classes=3):
    with pytest.raises(ConfigError) as caught:
        data(root, classes)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


ORDER = """
import sys
from metamixer.training.image_folder import open_folder
print(open_folder(sys.argv[1], "train").names)
"""


def test_classes_are_numbered_alike_in_every_process(tmp_path):
    """13.1: names that are equal as numbers, or but for case, had the order of a set."""
    names = ["7", "07", "007", "Cat", "cat", "10", "9"]
    tree(tmp_path, images("train", *names, count=1) + images("val", *names, count=1))
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(tmp_path / "train", ".")
    (tmp_path / "tar").mkdir()
    (tmp_path / "train.tar").rename(tmp_path / "tar" / "train.tar")
    found = set()
    for seed in "123":
        for root in (tmp_path, tmp_path / "tar"):
            command = [sys.executable, "-c", ORDER, str(root)]
            env = {**os.environ, "PYTHONHASHSEED": seed}
            found.add(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.strip())
    assert found == {"['007', '07', '7', '9', '10', 'Cat', 'cat']"}


def test_classes_have_timms_order_where_timm_has_one():
    from timm.utils.misc import natural_key

    names = ["n01440764", "class10", "class9", "b1a", "b01a2", "Zebra", "ant", "größe 10", "größe 9", "1", "11", "2"]
    assert sorted(names, key=class_order) == sorted(names, key=natural_key)


def test_validation_images_are_numbered_by_the_training_classes(tmp_path):
    """13.31: a class that validation lacks, an empty folder, hidden folders and stray files."""
    tree(tmp_path, images("train", "ash", "birch", "cedar"))
    tree(tmp_path, ["validation/cedar/a.png", "validation/ash/b.png"])
    for folder in ("validation/birch", "validation/empty", "train/.ipynb_checkpoints", "train/nothing"):
        (tmp_path / folder).mkdir()
    tree(tmp_path, ["train/.ipynb_checkpoints/0.png", "train/ash/._0.png", "validation/.hidden/0.png"])
    found = data(tmp_path)
    assert found.task.classes == ["ash", "birch", "cedar"] and len(found.task.source("train")) == 12
    assert evaluated(found) == [(1, 0), (0, 2)]


def test_what_is_passed_over_is_counted_and_named(tmp_path, caplog):
    tree(tmp_path, [*images("train", "ash", "birch"), "train/stray.png", *images("val", "ash", count=1)])
    for name in ("train/ash/notes.txt", "train/birch/more.txt", "train/birch/deep/raw.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert data(tmp_path, 2).counts["train"] == 8
    for part in ("2 .txt files", "1 .heic files", "1 images beside the class folders: stray.png"):
        assert part in caplog.text


def test_a_flat_validation_folder_is_said_to_be_one(tmp_path):
    tree(tmp_path, [*images("train", "ash", "birch"), "validation/0.png", "validation/1.png"])
    refused(tmp_path, "validation: no image in a folder of its class", "2 images beside the class folders", classes=2)


def test_classes_that_were_not_trained_are_named(tmp_path):
    """13.2"""
    tree(tmp_path, images("train", "ash", "birch", "cedar") + images("val", "birch", "dogwood", "elm", count=1))
    refused(tmp_path, "no such class among the 3 trained ones: dogwood, elm")


def test_known_classes_number_another_folder(tmp_path):
    """13.2: a folder that holds some of a run's classes, evaluated by the run's own order."""
    tree(tmp_path, images("val", "birch", "cedar", count=1))
    config = configure(tmp_path).data
    task = ImageClasses(config, classes=["cedar", "ash", "birch"])
    assert evaluated(Data(config, None, task=task)) == [(0, 2), (1, 0)]
    with pytest.raises(ConfigError, match="no such class among the 3 trained ones: cedar"):
        Data(config, None, task=ImageClasses(config, classes=["ash", "birch", "dogwood"]))


def test_evaluation_alone_takes_its_classes_from_the_training_folders(tmp_path):
    tree(tmp_path, images("train", "ash", "birch", "cedar", count=1) + images("val", "cedar", count=1))
    assert evaluated(Data(configure(tmp_path).data, None)) == [(3, 2)]


@pytest.mark.parametrize("tar", ["train/old.tar", "train.tar"])
def test_tar_files_beside_class_folders_are_refused(tmp_path, tar):
    """13.4"""
    tree(tmp_path, images("train", "ash", "birch") + images("val", "ash", count=1))
    with tarfile.open(tmp_path / "old.tar", "w") as file:
        file.add(tmp_path / "train" / "ash", "ash")
    (tmp_path / "old.tar").rename(tmp_path / tar)
    refused(tmp_path, "holds both", tar.removeprefix("train/"), classes=2)


@pytest.mark.parametrize("tars", [False, True])
def test_all_that_pillow_reads_is_an_image(tmp_path, tars):
    """13.5"""
    tree(tmp_path, images("train", "ash", "birch") + images("validation", "ash", count=1))
    (tmp_path / "train" / "cedar").mkdir()
    for suffix in ("webp", "tif", "tiff", "bmp", "gif", "jfif", "JPG", "ppm"):
        name = {"jfif": "jpeg", "JPG": "jpeg", "tif": "tiff"}.get(suffix, suffix)
        Image.new("RGB", (80, 80)).save(tmp_path / "train" / "cedar" / f"0.{suffix}", format=name)
    root = tmp_path
    if tars:
        root = tmp_path / "tars"
        root.mkdir()
        for split in ("train", "validation"):
            with tarfile.open(root / f"{split}.tar", "w") as file:
                file.add(tmp_path / split, ".")
    found = data(root)
    assert np.bincount(found.task.source("train").targets).tolist() == [4, 4, 8]
    assert sum(len(y) for _, y in found.batches(0)) == 16


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_ramp(tmp_path, kind):
    """13.6: a ramp from 0 to 65535 over 80 columns, of which `convert` made white."""
    tree(tmp_path, images("train", "ash", "birch") + images("val", "ash", count=1))
    ramp = np.linspace(0, 65535, 80).round().astype(np.uint16)
    Image.fromarray(np.broadcast_to(ramp, (80, 80)).copy()).save(tmp_path / "val" / "ash" / f"0.{kind}")
    if kind == "tif":
        (tmp_path / "val" / "ash" / "0.png").unlink()
    changes = {"data.channels": 1, "data.mean": [0.0], "data.std": [1.0]}
    ((image, _),) = data(tmp_path, 2, **changes).evaluation("test")
    assert torch.equal(image[0, 0, 0] * 255, torch.from_numpy(ramp / 257).round().float())


def test_images_without_a_known_range_are_refused_by_name(tmp_path):
    """13.6: floating-point TIFFs became black."""
    tree(tmp_path, images("train", "ash", "birch") + images("val", "ash", count=1))
    Image.fromarray(np.random.default_rng(0).random((80, 80), np.float32)).save(tmp_path / "val" / "ash" / "1.tif")
    with pytest.raises(ConfigError, match=r"val/ash/1\.tif: its pixels are floating-point numbers of unknown range"):
        list(data(tmp_path, 2).evaluation("test"))


def test_an_image_over_pillows_limit_is_not_called_broken(tmp_path, monkeypatch):
    """13.36"""
    tree(tmp_path, images("train", "ash", "birch") + images("val", "ash", count=1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ConfigError, match=r"val/ash/0\.png: Image size \(6400 pixels\) exceeds limit") as caught:
        list(data(tmp_path, 2, **{"data.skip_broken": True}).evaluation("test"))
    assert "broken image" not in str(caught.value)


def test_the_top_folder_is_the_class(tmp_path):
    """13.8: cat/old and dog/old became one class `old`."""
    tree(tmp_path, images("train", "cat/old", "cat/new", "dog/old", count=2) + images("val", "dog/deep/er", count=1))
    found = data(tmp_path, 2)
    assert (found.task.classes, found.task.source("train").targets.tolist()) == (["cat", "dog"], [0, 0, 0, 0, 1, 1])
    assert evaluated(found) == [(6, 1)]


def test_folders_of_one_name_in_a_tar_file_are_refused(tmp_path):
    tree(tmp_path, images("train", "cat/old", "dog/old", count=1))
    with tarfile.open(tmp_path / "val.tar", "w") as file:
        file.add(tmp_path / "train", ".")
    refused(tmp_path, "two folders of one name, cat/old and dog/old", classes=2)


def test_folders_and_tar_files_that_cannot_be_read_are_one_line(tmp_path):
    tree(tmp_path, images("train", "ash", "birch") + images("val", "ash", count=1))
    (tmp_path / "val/ash/gone.png").symlink_to(tmp_path / "nowhere")
    refused(tmp_path, "val/ash/gone.png: cannot be read (No such file", classes=2)
    shutil.rmtree(tmp_path / "val")
    (tmp_path / "val.tar").write_bytes(b"no tar file")
    refused(tmp_path, "val.tar: no image can be found in these tar files", classes=2)


def test_a_home_folder_and_a_name_in_any_bytes(tmp_path, monkeypatch):
    """13.36: `~` in data.root."""
    monkeypatch.setenv("HOME", str(tmp_path))
    tree(tmp_path / "pictures", images("train", "größe", "birch") + images("val", "größe", count=1))
    os.rename(tmp_path / "pictures/train/birch/0.png", os.fsencode(tmp_path / "pictures/train/birch") + b"/\xff.png")
    assert len(list(data("~/pictures", 2).batches(0))) == 2


def test_the_hash_of_a_run_holds_its_images_and_not_their_place(tmp_path):
    """13.15"""
    files = images("train", "ash", "birch") + images("val", "ash", count=1)
    here = digest(configure(tree(tmp_path / "here", files), 2))
    assert digest(configure(tree(tmp_path / "there", files), 2)) == here
    changed = configure(tree(tmp_path / "there", ["train/ash/9.png"]), 2)
    assert digest(changed) != here
    again = override(changed, {"data.root": str(tmp_path / "here")})
    assert digest(again) == here and override(again, {"seed": 1}).data.manifest == again.data.manifest
    shutil.rmtree(tmp_path / "here")  # a login node need not have the images
    assert digest(parse(type(again), again.to_dict())) == here


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda root: [(root / f"train/ash/{i}.png").unlink() for i in (0, 1)], "train/ash has 2 files where it had 4"),
        (lambda root: tree(root, ["train/birch/9.png"]), "train/birch has 5 files where it had 4"),
        (lambda root: (root / "val/ash").rename(root / "val/birch"), "test/ash has 0 files where it had 1"),
        (lambda root: Image.new("L", (9, 9)).save(root / "train/ash/3.png"), "train/ash has other files"),
        (
            lambda root: [
                (root / "train" / a).rename(root / "train" / b)
                for a, b in (("ash", "c"), ("birch", "ash"), ("c", "birch"))
            ],
            "train/ash has other files, train/birch has other files",
        ),
    ],
)
def test_a_run_does_not_go_on_with_other_images(tmp_path, change, words):
    """13.3"""
    root = tree(tmp_path / "images", images("train", "ash", "birch") + images("val", "ash", count=1))
    config = configure(root, 2, **{"data.image_size": 12, "recipe.epochs": 2, "recipe.warmup_epochs": 0})

    def stop(row):
        raise Interrupted("after an epoch")

    with pytest.raises(Interrupted):
        train(config, tmp_path / "run", after_epoch=stop)
    change(root)
    with pytest.raises(ConfigError) as caught:
        train(config, tmp_path / "run")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="not those that the run was planned with"):
        train(config, tmp_path / "planned")


def test_a_run_is_evaluated_by_the_names_of_its_classes(tmp_path):
    """13.2: on a folder without the first of its classes, each image has the loss that it had in the run."""
    root = tree(tmp_path / "images", images("train", "ash", "birch", "cedar") + images("val", "ash", "birch", "cedar"))
    config = configure(root, **{"data.image_size": 12, "recipe.epochs": 1, "recipe.warmup_epochs": 0})
    whole = train(config, tmp_path / "run")
    part = tree(tmp_path / "part", ["val/ash/0.png"])
    shutil.rmtree(part / "val/ash")
    losses = []
    for name in ("ash", "birch", "cedar"):
        shutil.copytree(root / "val" / name, part / "val" / name)
        rows, _, _ = score(str(tmp_path / "run"), config.data, {"root": str(part)}, device="cpu")
        losses.append(rows["raw"]["loss"])
        shutil.rmtree(part / "val" / name)
    assert np.mean(losses) == pytest.approx(whole["raw"]["loss"], rel=1e-6)
    tree(part, ["val/dogwood/0.png"])
    with pytest.raises(ConfigError, match="no such class among the 3 trained ones: dogwood"):
        score(str(tmp_path / "run" / "last.pt"), config.data, {"root": str(part)}, device="cpu")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run's folder; its classes are ash, birch, cedar."""
    path = tmp_path_factory.mktemp("teacher")
    root = tree(path / "images", images("train", "ash", "birch", "cedar") + images("val", "ash"))
    train(configure(root, **{"data.image_size": 12, "recipe.epochs": 1, "recipe.warmup_epochs": 0}), path / "run")
    return path / "run"


def head(state):
    return torch.cat([state["head.fc.weight"], state["head.fc.bias"][:, None]], 1)


def test_a_teacher_and_initial_weights_are_matched_by_the_names_of_classes(tmp_path, teacher, caplog):
    """13.2: a data set of two of the three classes, and one with a class that the weights do not know."""
    theirs = torch.load(teacher / "last.pt")
    root = tree(tmp_path / "two", images("train", "birch", "cedar") + images("val", "cedar"))
    changes = {"data.image_size": 12, "recipe.distillation": {"teacher": str(teacher)}}
    config = configure(root, 2, **changes, initial={"source": str(teacher / "last.pt")})
    learner = Learner(config, torch.device("cpu"), 1, classes=["birch", "cedar"])
    assert torch.equal(head(learner.teacher.model.state_dict()), head(theirs["ema"])[1:])
    assert torch.equal(head(learner.model.state_dict()), head(theirs["model"])[1:])
    with pytest.raises(ConfigError, match="know no class dogwood, only ash, birch, cedar"):
        Learner(config, torch.device("cpu"), 1, classes=["birch", "dogwood"])
    alone = override(config, {"recipe.distillation": None})
    fresh, own = Learner(alone, torch.device("cpu"), 1, classes=["birch", "dogwood"]).model, alone.build()
    assert torch.equal(head(fresh.state_dict()), head(own.state_dict())) and "know no class dogwood" in caplog.text
    name = next(iter(theirs["model"]))
    assert torch.equal(fresh.state_dict()[name], theirs["model"][name])


# ---- lists of classes and of images


def test_a_list_of_classes_gives_their_order_and_leaves_others_out(tmp_path):
    names = images("train", "ash", "birch", "cedar") + images("val", "ash", "birch", "cedar", count=2)
    whole = data(tree(tmp_path, names))
    before = whole.config.manifest
    (tmp_path / "classes.txt").write_text("cedar\n\nash\n")
    found = data(tmp_path, 2)
    assert found.task.source("train").names == ["ash", "cedar"] and found.task.classes == ["cedar", "ash"]
    classes = {level: ["cedar", "ash"][number] for level, number in evaluated(found)}
    assert classes == {level: ["ash", "birch", "cedar"][number] for level, number in evaluated(whole) if number != 1}
    assert found.task.source("train").passed_over == ["1 folders of classes that are not in classes.txt"]
    (tmp_path / "classes.txt").write_text("ash\ncedar")
    assert len({before, found.config.manifest, data(tmp_path, 2).config.manifest}) == 3
    levels = {(level, 1 - number) for level, number in evaluated(found)}
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            tar.add(tmp_path / split, ".")
        (tmp_path / split).rename(tmp_path / f"_{split}")
    assert set(evaluated(data(tmp_path, 2))) == levels
    for split in ("train", "val"):
        (tmp_path / f"{split}.tar").unlink()
        (tmp_path / f"_{split}").rename(tmp_path / split)
    (tmp_path / "classes.txt").write_text("ash\noak")
    refused(tmp_path, "no training image of oak, named in classes.txt", classes=2)
    (tmp_path / "classes.txt").write_text("ash\nash")
    refused(tmp_path, "class 'ash' stands there twice")


def test_images_may_be_listed_in_a_table(tmp_path):
    """The same images and classes as by folders, wherever the files lie; as far as a list of classes goes."""
    folders = tree(tmp_path / "a", images("train", "ash", "birch") + images("val", "ash", "birch", count=2))
    (root := tmp_path / "b").mkdir()
    for split in ("train", "val"):
        paths = sorted((folders / split).rglob("*.png"), reverse=True)
        rows = [f"../a/{path.relative_to(folders)},{path.parent.name},x" for path in paths]
        (root / f"{split}.csv").write_text("\n".join(["path,label,note", *rows]))
    listed = data(root, 2)
    assert sorted(evaluated(listed)) == sorted(evaluated(data(folders, 2)))
    assert listed.task.classes == ["ash", "birch"] and listed.counts["train"] == 8 and listed.config.manifest
    file, text = root / "train.csv", (root / "train.csv").read_text()
    (root / "classes.txt").write_text("birch\nash")
    assert {(level, 1 - number) for level, number in evaluated(data(root, 2))} == set(evaluated(listed))
    for content, message in (
        (text.replace("label", "class"), "no column 'label'; a list of images has the columns path and label"),
        (text.replace("/0.png", "/9.png"), "9.png: cannot be read (No such file"),
        ("path,label", "it lists no image"),
        ("", "cannot be read as CSV (No columns"),
        (text.replace(",ash", ",oak"), "no training image of ash"),
    ):
        file.write_text(content)
        refused(root, message, classes=2)
    file.write_text(text)
    (root / "train").mkdir()
    refused(root, "holds both train/ and train.csv")


# ---- images that are not square


def test_images_may_be_rectangles_from_training_to_export(tmp_path):
    """Of the images' own shape nothing is cut; others are scaled until they cover the rectangle."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in ("ash", "birch"):
            (tmp_path / split / name).mkdir(parents=True)
            for n in range(count):
                pixels = rng.integers(0, 256, (48, 72, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{n}.png")
    config = configure(tmp_path, 2, **{"data.image_size": [24, 36], "recipe.epochs": 1, "recipe.warmup_epochs": 0})
    assert config.data.input_size == (3, 24, 36) and "at 24×36 px" in config.data.about
    first = next(Data(config.data, config.recipe).evaluation("test"))[0][0]
    with Image.open(tmp_path / "val" / "ash" / "0.png") as image:
        expected = np.asarray(image.resize((36, 24), Image.Resampling.BICUBIC)) / 255
    np.testing.assert_allclose(first.permute(1, 2, 0), expected, atol=1e-6)
    large = override(config, {"data.image_size": [96, 72]})
    assert next(Data(large.data, large.recipe).evaluation("test"))[0].shape == (4, 3, 96, 72)
    train(config, tmp_path / "run")
    rows, *_ = score(str(tmp_path / "run"), config.data, {"image_size": [32, 48]}, device="cpu")
    assert rows["raw"]["images"] == 4 and find_network(str(tmp_path / "run")).input_size == (3, 24, 36)
    square = override(config, {"data.image_size": [24, 24]})
    assert square.data.image_size == 24
    with pytest.raises(ConfigError, match=r"data.image_size: .*height and width, got \[24, 4\]"):
        override(config, {"data.image_size": [24, 4]})
