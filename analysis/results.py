"""Results small enough to ship: a grid's runs in one file, read like the folder that they come from.

A pack, `GRID@DATA.tar.xz`, is a tar of run folders without checkpoints and logs: manifest, configurations, versions,
metrics, results, predictions.

    python launch.py ship ffnification kernel_size --data fashion-mnist --out notebooks/results
"""

from __future__ import annotations

import atexit
import io
import json
import lzma
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metamixer.latency.rows import FILE as LATENCIES
from metamixer.latency.rows import SCHEMA, read
from metamixer.training.folder import RunFolder
from sweeps.trials import FILE, find_search, read_trials

from .frame import load
from .statistics import UNREADABLE

SUFFIX = ".tar.xz"
# in a line of metrics.jsonl
_TIMES = re.compile(rb', "(seconds|images_per_second)": [\d.e+-]+')
# of environment.json: what a figure may depend on, but nothing of whose machine it was
_VERSIONS = ("python", "torch", "timm", "numpy", "pillow", "cpu", "threads", "device", "gpu", "commit", "dirty")


def open_runs(folder: str | Path, *names: str) -> Path:
    """A folder of runs: `folder` itself, or where it or folders in it hold packs, a temporary one with their runs.

    Args:
        names: the grids whose packs are opened (a search: `search-NAME`); all of them if none is given.

    Raises ValueError: a pack that is damaged.
    """
    packs = sorted(Path(folder).glob(f"*{SUFFIX}"))
    if not packs:
        return Path(folder)
    packs += sorted(Path(folder).glob(f"*/*{SUFFIX}"))
    root = Path(tempfile.mkdtemp(prefix="metamixer-results-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for path in packs:
        if names and path.name.split("@")[0] not in names:
            continue
        try:
            with tarfile.open(path) as tar:
                tar.extractall(root, filter="data")
        except (tarfile.TarError, lzma.LZMAError, OSError, EOFError) as error:
            raise ValueError(f"{path}: no pack of results, or a damaged one ({error}): pack it again") from None
    with (root / LATENCIES).open("ab") as file:
        for rows in sorted(root.glob(f"*.{LATENCIES}")):  # one for each pack
            file.write(rows.read_bytes())
    return root


class Pack(NamedTuple):
    """What a pack will hold: its name, its files, and the variants whose weights are among them."""

    name: str
    files: dict[str, bytes]
    weights: tuple[str, ...] = ()


def of_grid(root: str | Path, grid: str, data: str | None, weights: Iterable[str] = (), small: bool = False) -> Pack:
    """The finished and failed runs of a grid on one data set, as a pack for `write`.

    Args:
        root: the folder of the runs.
        data: the data set, as in the manifest's name.
        weights: variants whose reported weights go along, where the grid has finished runs of them, for their first
            finished seed at the recipe's learning rate, rounded (`inside.rounded_weights`): good for a look, but not
            quite the network that was scored.
        small: without predictions and the times of epochs, for grids of thousands of runs. Intervals are then over
            seeds alone.

    Raises ValueError: no such grid, no finished run, or weights that are not kept.
    """
    root = Path(root)
    runs, meta = load(root, grid, data, with_config=True)
    name = f"{grid}@{meta.data}"
    ended = runs[runs["state"].isin(["done", "failed"])]
    if not len(ended):
        raise ValueError(f"grid {name} in {root}: no run has finished, so there is nothing to ship")
    files = {f"grids/{name}.json": (root / "grids" / f"{name}.json").read_bytes()}
    for key in dict.fromkeys(ended["hash"]):
        files |= dict(_files(root / key, small))
    networks = set(runs["network"])
    rows = [row for row in read(root, lambda line: None) if row.network in networks]
    if rows:
        lines = (json.dumps({"schema": SCHEMA, **row.to_dict()}) + "\n" for row in rows)
        files[f"{name}.{LATENCIES}"] = "".join(lines).encode()
    finished = ended[(ended["state"] == "done") & ended["fixed"]]
    firsts = finished.drop_duplicates("variant").set_index("variant")["folder"]
    kept = [variant for variant in weights if variant in firsts]
    if kept:
        from .inside import rounded_weights  # builds networks, so loads torch

        for folder in map(Path, firsts[kept]):
            files[f"{folder.name}/weights.npz"] = _npz(rounded_weights(folder))
    return Pack(name, files, tuple(kept))


def of_search(root: str | Path, name: str, data: str) -> Pack:
    """A search as a pack for `write`: what was searched and its trials, each with how it ended; without their runs.

    Raises ValueError: no such search.
    """
    folder = find_search(Path(root), name, data)
    place = f"searches/{folder.name}"
    lines = "".join(json.dumps(row) + "\n" for row in read_trials(folder))
    files = {f"{place}/search.json": (folder / "search.json").read_bytes(), f"{place}/{FILE}": lines.encode()}
    return Pack(f"search-{folder.name}", files)


def _files(folder: Path, small: bool) -> Iterator[tuple[str, bytes]]:
    """What is packed of a run, by its name in the pack."""
    for name in ("config.json", "result.json", "metrics.jsonl"):
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            yield f"{folder.name}/{name}", _TIMES.sub(b"", content) if small and name == "metrics.jsonl" else content
    if made := RunFolder(folder).read("environment.json"):
        yield f"{folder.name}/environment.json", json.dumps({k: made[k] for k in _VERSIONS if k in made}).encode()
    if small:
        return
    try:
        with np.load(folder / "predictions.npz") as arrays:
            found = {name: _small(arrays[name]) for name in arrays.files}
    except UNREADABLE:  # none kept, or torn: tables say that not every variant has them
        return
    yield f"{folder.name}/predictions.npz", _npz(found)


def _small(array: np.ndarray) -> np.ndarray:
    """Classes in as few bytes as hold them; anything else as it is."""
    classes = array.dtype.kind in "iu" and array.size and array.min() >= 0
    return array.astype(np.min_scalar_type(array.max())) if classes else array


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    """Not compressed: xz does that, over all of them."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def write(out: str | Path, packs: list[Pack]) -> list[Path]:
    """Write packs into the folder `out`; returns their files."""
    return [write_pack(Path(out) / f"{pack.name}{SUFFIX}", pack.files) for pack in packs]


def write_pack(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz", preset=9) as tar:
        for name in sorted(files, key=lambda name: (Path(name).name, name)):  # like beside like
            member = tarfile.TarInfo(name)  # with no time and no owner: the same runs make the same bytes
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return path
