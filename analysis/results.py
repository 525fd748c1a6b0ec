"""Results small enough to ship: a grid's runs in one file, read like the folder that they come from.

A pack, `GRID@DATA.tar.xz`, is a tar of run folders without checkpoints and logs: manifest, configurations, versions,
metrics, results. The predictions of all runs lie in one array, image by image, as the distance from the label: runs
err on the same images, so that xz makes little of them. `README.md` beside the packs says what made them.

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
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metamixer.config import KEYS_OF_SCHEMA_1
from sweeps.trials import FILE, find_search, read_trials

from . import rates
from .folders import read_json
from .frame import load
from .predictions import UNREADABLE

SUFFIX = ".tar.xz"
_PREDICTIONS = "predictions.npz"
_LATENCIES = "latency.jsonl"
_RUN = re.compile(r"[0-9a-f]{16}")  # a run's folder: nothing else that a pack names may become a path
# of environment.json: what a figure may depend on, but nothing of whose machine it was
_VERSIONS = ("python", "torch", "timm", "numpy", "pillow", "cpu", "threads", "device", "gpu", "commit", "dirty")


def open_runs(folder: str | Path) -> Path:
    """A folder of runs: `folder` itself, or where it holds packs, a temporary one with their runs.

    Raises:
        ValueError: a pack that is damaged.
    """
    folder = Path(folder)
    packs = sorted(folder.glob(f"*{SUFFIX}"))
    return _unpacked(*packs) if packs else folder


def _unpacked(*packs: Path) -> Path:
    return _unpacked_as_of(tuple((path, path.stat().st_mtime_ns) for path in packs))


@cache
def _unpacked_as_of(packs: tuple[tuple[Path, int], ...]) -> Path:
    root = Path(tempfile.mkdtemp(prefix="metamixer-results-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    for path, _ in packs:
        try:
            with tarfile.open(path) as tar:
                tar.extractall(root, filter="data")
            _hand_out(root / _PREDICTIONS, root)
            _of_today(root)
            _join_latencies(root)
        except (tarfile.TarError, lzma.LZMAError, *UNREADABLE) as error:
            raise ValueError(f"{path}: no pack of results, or a damaged one ({error}): pack it again") from None
    return root


def _hand_out(packed: Path, root: Path) -> None:
    """Give each run its predictions."""
    if not packed.is_file():
        return
    with np.load(packed) as arrays:
        labels = {name.removeprefix("label."): arrays[name] for name in arrays.files if name.startswith("label.")}
        for which, label in labels.items():
            runs: dict[str, dict[str, np.ndarray]] = {}
            off = arrays[f"off.{which}"]
            for column, name in enumerate(arrays[f"columns.{which}"]):
                key, _, kind = str(name).partition(".")
                if not _RUN.fullmatch(key):
                    raise ValueError(f"predictions of {key!r}, which is no run")
                runs.setdefault(key, {})[kind] = label + off[:, column].astype(label.dtype)
            for key, predictions in runs.items():
                np.savez(root / key / _PREDICTIONS, label=label, **predictions)  # type: ignore[arg-type]
    packed.unlink()


def _of_today(root: Path) -> None:
    """Give configurations of schema 1 the keys of today, so that their networks can be built; figures stay."""
    for path in root.glob("*/config.json"):
        content = json.loads(path.read_bytes())
        if content.get("schema") != 1:
            continue
        config = content["config"]
        recipe = config["recipe"]
        share, switch = recipe.pop("mix_probability"), recipe.pop("mix_switch")
        for old, new in KEYS_OF_SCHEMA_1.items():
            recipe[new.removeprefix("recipe.")] = recipe.pop(old.removeprefix("recipe."))
        recipe["color_jitter"] = 0.0 if recipe["rand_augment"] else recipe["color_jitter"]  # had no effect beside it
        recipe |= {"mixup_prob": share * (1 - switch), "cutmix_prob": share * switch}
        path.write_text(json.dumps({**content, "schema": 2, "config": config}))


def _join_latencies(root: Path) -> None:
    """Rows of one pack's latencies join those of the packs before."""
    for path in root.glob(f"*.{_LATENCIES}"):
        with (root / _LATENCIES).open("ab") as file:
            file.write(path.read_bytes())
        path.unlink()


class Pack(NamedTuple):
    """What a pack will hold: its name, its files, and the variants whose weights are among them."""

    name: str
    files: dict[str, bytes]
    weights: tuple[str, ...] = ()


def of_grid(root: str | Path, grid: str, data: str, weights: Iterable[str] = ()) -> Pack:
    """The finished and failed runs of a grid on one data set, as a pack for `write`.

    Args:
        root: the folder of the runs.
        data: the data set, as in the manifest's name.
        weights: variants whose reported weights go along, where the grid has finished runs of them, for their first
            finished seed at the recipe's learning rate, rounded (`inside.rounded_weights`): good for a look, but not
            quite the network that was scored.

    Raises:
        ValueError: no such grid, no finished run, or weights that are not kept.
    """
    root = Path(root)
    runs, _ = load(root, grid, data, with_config=True)
    ended = runs[runs["state"].isin(["done", "failed"])]
    if not len(ended):
        raise ValueError(f"grid {grid} on {data} in {root}: no run has finished, so there is nothing to ship")
    keys = list(dict.fromkeys(ended["hash"]))
    files: dict[str, bytes] = {f"grids/{grid}@{data}.json": (root / "grids" / f"{grid}@{data}.json").read_bytes()}
    for key in keys:
        files |= dict(_text_files(root / key))
    files |= dict(_predictions(root, keys))
    if rows := _latencies(root, set(runs["network"])):
        files[f"{grid}@{data}.{_LATENCIES}"] = rows
    finished = rates.at(ended[ended["state"] == "done"], "fixed")
    known = [variant for variant in weights if variant in set(finished["variant"])]
    for variant in known:
        from .inside import rounded_weights  # loads torch

        key = finished.loc[finished["variant"] == variant, "hash"].iloc[0]
        files[f"{key}/weights.npz"] = _npz(**rounded_weights(root / key))
    return Pack(f"{grid}@{data}", files, tuple(known))


def write(out: str | Path, packs: Iterable[Pack]) -> list[Path]:
    """Write packs to a folder, and its `README.md` anew; returns the packs' files.

    Raises:
        ValueError: the folder can't be written.
    """
    out = Path(out)
    paths = [write_pack(out / f"{pack.name}{SUFFIX}", pack.files) for pack in packs]
    (out / "README.md").write_text(readme(out), encoding="utf-8")
    return paths


def write_pack(path: Path, files: dict[str, bytes]) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:xz", preset=9) as tar:
            for name in sorted(files, key=lambda name: (Path(name).name, name)):  # like beside like
                member = tarfile.TarInfo(name)  # with no time and no owner: the same runs make the same bytes
                member.size = len(files[name])
                tar.addfile(member, io.BytesIO(files[name]))
    except OSError as error:
        raise ValueError(f"{path}: cannot write here ({error.strerror or error})") from None
    return path


def of_search(root: str | Path, name: str, data: str) -> Pack:
    """A search as a pack for `write`: what was searched and its trials, each with how it ended; without their runs.

    Raises:
        ValueError: no such search.
    """
    folder = find_search(Path(root), name, data)
    place = f"searches/{folder.name}"
    lines = "".join(json.dumps(row) + "\n" for row in read_trials(Path(root), folder))
    files = {f"{place}/search.json": (folder / "search.json").read_bytes(), f"{place}/{FILE}": lines.encode()}
    return Pack(f"search-{folder.name}", files)


def _text_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name in ("config.json", "result.json", "metrics.jsonl", "environment.json"):
        path = folder / name
        if path.is_file():
            content = path.read_bytes()
            if name == "environment.json":
                try:
                    found = json.loads(content)
                except ValueError:  # torn: the README says that its versions are unknown
                    continue
                content = json.dumps({key: found[key] for key in _VERSIONS if key in found}).encode()
            yield f"{folder.name}/{name}", content


def _predictions(root: Path, keys: list[str]) -> Iterator[tuple[str, bytes]]:
    """All runs' predictions as one file; those of runs with other test images apart."""
    labels: list[np.ndarray] = []
    columns: list[list[tuple[str, np.ndarray]]] = []
    for key in keys:
        try:
            with np.load(root / key / _PREDICTIONS) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            label = found.pop("label")
        except UNREADABLE:  # none kept, or torn: tables say that not every variant has them
            continue
        which = next((i for i, known in enumerate(labels) if np.array_equal(known, label)), len(labels))
        if which == len(labels):
            labels.append(label)
            columns.append([])
        columns[which] += [(f"{key}.{kind}", predicted - label) for kind, predicted in found.items()]
    packed: dict[str, np.ndarray] = {}
    for i, label in enumerate(labels):
        packed |= {f"label.{i}": label, f"columns.{i}": np.array([name for name, _ in columns[i]])}
        off = np.stack([values for _, values in columns[i]], 1)
        packed[f"off.{i}"] = off.astype(np.min_scalar_type(off.max()) if off.dtype.kind == "u" else off.dtype)
    if packed:
        yield _PREDICTIONS, _npz(**packed)


def _latencies(root: Path, networks: set[str]) -> bytes:
    """The whole lines of the file of latencies that are about these networks."""
    lines = (root / _LATENCIES).read_bytes().splitlines(keepends=True) if (root / _LATENCIES).is_file() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["network"] in networks:
                kept.append(line.rstrip(b"\n") + b"\n")
        except (ValueError, KeyError, TypeError):
            continue  # torn: `frame.load` said so
    return b"".join(kept)


def _npz(**arrays: np.ndarray) -> bytes:
    """Not compressed: xz does that, over all of them."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def readme(folder: str | Path) -> str:
    """What lies in a folder of packs: how many runs, and the versions that made them, in Markdown."""
    lines = [
        "# Results that the notebooks open",
        "",
        "Real runs of the project's own grids, made by `python launch.py run GRID --data DATA` or `launch.py search`,",
        "and packed as GRID@DATA by `python launch.py ship`, which writes this file too. `analysis.results.open_runs`",
        "reads all packs of a folder as one folder of runs.",
        "",
        "| pack | runs | versions | KB |",
        "|---|---|---|---:|",
    ]
    for path in sorted(Path(folder).glob(f"*{SUFFIX}")):
        root = _unpacked(path)
        states = [(read_json(found)[0] or {}).get("state") for found in root.glob("*/result.json")]
        runs = ", ".join(f"{states.count(state)} {state}" for state in ("done", "failed") if state in states)
        made = [read_json(found)[0] or {} for found in sorted(root.glob("*/environment.json"))]
        versions = [
            f"{key} {' and '.join(dict.fromkeys(str(of.get(key) or 'unknown').split('+')[0][:10] for of in made))}"
            for key in ("python", "torch", "timm", "cpu", "commit")
        ]
        versions += ["some with changes that were not committed"] * any(of.get("dirty") for of in made)
        said = ", ".join(versions) if made else ""
        name = path.name.removesuffix(SUFFIX)
        lines.append(f"| {name} | {runs or 'a search'} | {said} | {path.stat().st_size / 1000:.0f} |")
    return "\n".join(lines) + "\n"
