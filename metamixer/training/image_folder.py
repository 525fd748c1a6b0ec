"""A folder of images: one scan of a split gives its images, their classes and what the manifest says of them.

`root` holds `train` and `validation` (or another of `SPLITS`), each with one folder for each class. What lies deeper in
a class's folder belongs to that class, as in torchvision's `ImageFolder`. Or a split holds tar files, or is one. Or it
is a list, `train.csv`, with the columns `path` (from `root`) and `label`.

`classes.txt` in `root` names the classes in their order, one in each line. Images of other classes are left out.
"""

from __future__ import annotations

import functools
import io
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from timm.data.readers.reader_image_in_tar import extract_tarinfos

from ..config import ConfigError, hash_of
from ..tasks.files import manifest_of
from .image_source import Parts, Source, class_order, few

CLASSES = "classes.txt"
SPLITS = {"train": ("train", "training"), "test": ("validation", "val", "valid", "eval", "test")}


def open_folder(root: str | None, split: str) -> Files:
    """The images of the split `train` or `test`.

    Raises ConfigError: the split is missing, can't be read, or can't be told apart from something else.
    """
    place = _place(root, split)
    if place is None:
        raise ConfigError(f"data.root {root!r}: no folder {' or '.join(SPLITS[split])} in it")
    return _opened(place)


def _opened(place: Path) -> Files:
    with _one_line(place):
        if place.suffix == ".csv":
            return _listed(place)
        tars = _tar_files(place)
        return _in_tar_files(place, tars) if tars else _class_folders(place)


def trained_classes(root: str | None) -> list[str] | None:
    """The training split's classes, by the names of its folders or its list; None where it has neither."""
    place = _place(root, "train")
    if place is not None and place.suffix == ".csv":
        return _opened(place).names
    if place is None or _tar_files(place):
        return None
    with os.scandir(place) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(names, key=class_order)


def manifest(root: str) -> str | None:
    """A digest of the names, sizes and classes of all images of a root; None where there is no such folder.

    Raises ConfigError: a split can't be read, or can't be told apart from something else.
    """
    if not Path(root).expanduser().is_dir():
        return None
    splits = {}
    for split in SPLITS:
        place = _place(root, split)
        if place is not None:
            with _one_line(place):
                tars = [] if place.suffix == ".csv" else _tar_files(place)
                splits[split] = _tar_parts(tars) if tars else _opened(place).parts
    if (listed := class_list(root)) is not None:
        splits["classes"] = {"": [len(listed), hash_of(*(name.encode() + b"\0" for name in listed))]}
    return manifest_of(splits)


@dataclass
class Files(Source):
    """Images in files, or in parts of tar files.

    Attributes:
        paths: their paths, those in tar files within them. Arrays, as forked workers share them; of a list each worker
            would come to own a copy.
        targets: their classes' places in `names`.
        inside: their tar files, the places there and the sizes.
    """

    paths: np.ndarray
    targets: np.ndarray
    names: list[str]
    parts: Parts
    passed_over: list[str] = field(default_factory=list)
    inside: tuple[np.ndarray, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> tuple[BinaryIO, int]:
        label, path = int(self.targets[index]), os.fsdecode(self.paths[index])
        if not self.inside:
            return open(path, "rb"), label
        tar, offset, size = (each[index] for each in self.inside)
        # opened anew each time: forked workers would share an open file's position
        with open(os.fsdecode(tar), "rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size)), label

    def where(self, index: int) -> str:
        tar = f"{os.fsdecode(self.inside[0][index])}: " if self.inside else ""
        return tar + os.fsdecode(self.paths[index])


def _class_folders(place: Path) -> Files:
    """A split with a folder for each class. Hidden files and folders are passed over."""
    with os.scandir(os.fsencode(place)) as entries:
        there = [entry for entry in entries if not entry.name.startswith(b".")]
    wanted = class_list(place.parent)
    other = Counter[str]()
    parts: Parts = {}
    paths: list[bytes] = []
    folders = [os.fsdecode(entry.name) for entry in there if entry.is_dir()]
    for name in sorted(set(folders) & set(wanted or folders), key=class_order):
        files = sorted(_images(os.fsencode(place / name), os.fsencode(name) + b"/", other))
        if files:
            first = (place / os.fsdecode(files[0][0])).read_bytes()  # so that two folders' names can't be swapped
            parts[name] = [len(files), hash_of(first, *(b"%b\0%d\0" % file for file in files))]
            paths += [os.path.join(os.fsencode(place), path) for path, _ in files]
    passed_over = [f"{count} {suffix} files, which Pillow does not read" for suffix, count in other.items()]
    if unwanted := len(set(folders) - set(wanted or folders)):
        passed_over.append(f"{unwanted} folders of classes that are not in {CLASSES}")
    strays = sorted(os.fsdecode(entry.name) for entry in there if not entry.is_dir())
    strays = [name for name in strays if _suffix(name) in readable()]
    if strays:
        passed_over.append(f"{len(strays)} images beside the class folders: {few(strays)}")
    if not paths:
        raise ConfigError(
            f"{place}: no image in a folder of its class here ({'; '.join(passed_over) or 'it is empty'})"
        )
    targets = np.repeat(np.arange(len(parts)), [count for count, _ in parts.values()])
    return Files(np.array(paths, "S"), targets, list(parts), parts, passed_over)


def _listed(file: Path) -> Files:
    """A split as a list of paths and labels."""
    import pandas as pd

    try:
        rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise ConfigError(f"{file}: cannot be read as CSV ({str(error).splitlines()[0]})") from None
    if missing := {"path", "label"} - set(rows):
        raise ConfigError(f"{file}: no column {min(missing)!r}; a list of images has the columns path and label")
    wanted = class_list(file.parent)
    used = rows if wanted is None else rows[rows["label"].isin(wanted)]
    if used.empty:
        raise ConfigError(f"{file}: it lists no image" + (f" of a class in {CLASSES}" if len(rows) else ""))
    names = sorted(set(used["label"]), key=class_order)
    paths = np.array([os.fsencode(file.parent / path) for path in used["path"]])
    parts: Parts = {}
    for name, group in used.assign(size=[os.stat(path).st_size for path in paths]).groupby("label"):
        lines = [f"{path}\0{size}\0".encode() for path, size in zip(group["path"], group["size"], strict=True)]
        parts[str(name)] = [len(lines), hash_of(*sorted(lines))]
    left = len(rows) - len(used)
    passed_over = [f"{left} images of classes that are not in {CLASSES}"] if left else []
    targets = pd.Categorical(used["label"], names).codes.astype(int)
    return Files(paths, targets, names, parts, passed_over)


def _in_tar_files(place: Path, tars: list[Path]) -> Files:
    """A split in tar files, found by timm's reader; an image's class is its folder in them, or else its tar file.

    timm leaves an index beside large tar files; the first process of a machine makes it and the others read it.
    """
    root = place if place.is_dir() else place.parent
    samples, classes, numbers = _first_process_first(lambda: _list_tars(place))
    found = {number: name for name, number in numbers.items()}
    folders: dict[str, str] = {}
    rows, wanted = [], class_list(place.parent)
    for (member, tar, inner), target in zip(samples, classes, strict=True):
        name, tar = found[target], tar or place.name
        folder, file = posixpath.split(posixpath.normpath(member.path))
        folder = folder or (inner.name if inner else tar)
        if folders.setdefault(name, folder) != folder:
            raise ConfigError(f"{place}: two folders of one name, {folders[name]} and {folder}: rename one of them")
        if not file.startswith(".") and (wanted is None or name in wanted):
            offset = member.offset_data + (inner.offset_data if inner else 0)
            rows.append((name, os.fsencode(member.path), os.fsencode(root / tar), offset, member.size))
    if not rows:
        raise ConfigError(f"{place}: no image of a class in {CLASSES}")
    names = sorted({row[0] for row in rows}, key=class_order)
    places = {name: place for place, name in enumerate(names)}
    rows.sort(key=lambda row: (places[row[0]], *row[1:]))
    paths, *inside = map(np.array, zip(*(row[1:] for row in rows), strict=True))
    targets = np.array([places[row[0]] for row in rows])
    return Files(paths, targets, names, _tar_parts(tars), inside=tuple(inside))


def _place(root: str | None, split: str) -> Path | None:
    """The folder or tar file of a split; None if there is none."""
    if root is None:
        raise ConfigError("data 'folder' needs data.root, the folder that holds train/ and validation/")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"data.root {root!r}: no such folder")
    for name in SPLITS[split]:
        found = [place for place in (folder / name, folder / f"{name}.tar", folder / f"{name}.csv") if place.exists()]
        if len(found) > 1:
            two = " and ".join(place.name + "/" * place.is_dir() for place in found[:2])
            raise ConfigError(f"data.root {root!r} holds both {two}: move one of them away")
        if found:
            return found[0]
    return None


@contextmanager
def _one_line(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        name = os.fsdecode(error.filename or place)
        raise ConfigError(f"{name}: cannot be read ({error.strerror or error})") from None


def class_list(root: str | Path) -> list[str] | None:
    """The names in `classes.txt`; None where there is none."""
    if not (file := Path(root).expanduser() / CLASSES).is_file():
        return None
    names = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"{file}: class {twice[0]!r} stands there twice")
    return names


def _tar_files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    with os.scandir(place) as entries:
        there = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    tars = [place / name for name, is_folder in there if not is_folder and name.endswith(".tar")]
    folders = [name for name, is_folder in there if is_folder]
    if tars and folders:
        raise ConfigError(
            f"{place} holds both tar files and folders, {tars[0].name} and {folders[0]}/ among them: "
            "move away those that hold no images of this split"
        )
    return tars


def _tar_parts(tars: list[Path]) -> Parts:
    return {path.name: [1, hash_of(str(path.stat().st_size))] for path in tars}


def _list_tars(place: Path) -> tuple[Any, Any, dict[str, int]]:
    try:
        try:
            return extract_tarinfos(str(place), extensions=readable())[:3]
        except OSError:  # no index can be left on a disk that is not ours to write
            return extract_tarinfos(str(place), extensions=readable(), cache_tarinfo=False)[:3]
    except OSError:
        raise
    except Exception as error:  # whatever tarfile, or timm of its index, says
        raise ConfigError(f"{place}: no image can be found in these tar files ({error})") from None


def _first_process_first(work: Callable[[], Any]) -> Any:
    from torch import distributed

    together = distributed.is_available() and distributed.is_initialized()
    first = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))) == 0
    if together and not first:
        distributed.barrier()
    try:
        return work()
    finally:
        if together and first:
            distributed.barrier()


def _images(folder: bytes, prefix: bytes, other: Counter[str]) -> Iterator[tuple[bytes, int]]:
    """Paths, behind `prefix`, and sizes of the images in a folder and below; other files' suffixes are counted."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if entry.is_dir():
                yield from _images(entry.path, prefix + entry.name + b"/", other)
            elif (suffix := _suffix(os.fsdecode(entry.name))) in readable():
                yield prefix + entry.name, entry.stat().st_size
            else:
                other[suffix or "suffixless"] += 1


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


@functools.cache
def readable() -> frozenset[str]:
    """Suffixes of the files that Pillow can open."""
    Image.init()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
