"""Checkpoints: written aside and renamed, checked when read, loaded with `weights_only`."""

from __future__ import annotations

import io
import logging
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..config import ConfigError
from .folder import RunFolder

log = logging.getLogger(__name__)

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
# how files begin that torch wrote before 1.6: a pickle, no archive, and without checksums
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def save(folder: RunFolder, state: dict[str, Any]) -> None:
    """Write `state` as the newest checkpoint and keep the one before."""
    folder.replace(LAST, lambda aside: _write(aside, state), keep=PREVIOUS)


def save_best(folder: RunFolder, state: dict[str, Any]) -> None:
    """Write `state`, weights with the epoch and score that chose them, in place of an earlier best."""
    folder.replace(BEST, lambda aside: _write(aside, state))


def _write(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch's own writer hides a full disk behind a RuntimeError of its archive
    torch.save(state, buffer)
    path.write_bytes(buffer.getbuffer())


def load_newest(folder: RunFolder) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run; None if there is none at all.

    Raises ConfigError: there are checkpoints, and all of them are damaged. They and the metrics are left as they are.
    """
    damaged = []
    for name in (LAST, PREVIOUS):
        path = folder.path / name
        if path.exists():
            try:
                state = read(path)
            except ConfigError as error:
                damaged.append(str(error))
                continue
            if damaged:
                log.warning("%s; the run goes on from %s", damaged[0], name)
            return state
    if damaged:
        raise ConfigError(
            f"{'; '.join(damaged)}: the run can't go on. To train it from the start again, move the checkpoints away"
        )
    return None


def read(path: Path | str) -> dict[str, Any]:
    """A checkpoint, its checksums verified where it has them.

    Raises ConfigError: missing, truncated, damaged, or holding more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such checkpoint")
    try:
        with path.open("rb") as file:
            legacy = file.read(len(LEGACY)) == LEGACY
        if not legacy:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken is not None:
                raise ConfigError(f"{path}: the checkpoint is damaged ({broken}); use another one")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, RuntimeError, OSError, IndexError, struct.error) as error:
        raise ConfigError(f"{path}: not a whole checkpoint ({_short(error)}); use another one") from None
    except Exception as error:  # pickle.UnpicklingError and what weights_only raises for foreign objects
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise ConfigError(
            f"{path}: holds more than weights and plain values ({named[1] if named else _short(error)}); save the "
            "weights alone: torch.save(model.state_dict(), FILE)"
        ) from None


def load_weights(model: torch.nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Copy a state dict into `model`.

    Raises ConfigError: it belongs to another model; the line names the first difference.
    """
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        what = f"it lacks {missing[0]!r}" if missing else f"it has {unexpected[0]!r}, the model does not"
        count = len(missing) + len(unexpected)
        raise ConfigError(f"{source}: checkpoint of another model: {what} ({count} names differ)")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            raise ConfigError(
                f"{source}: checkpoint of another model: {name!r} has shape {tuple(state[name].shape)}, "
                f"the model's is {tuple(tensor.shape)} (some mixers are tied to the image size)"
            )
    model.load_state_dict(state)


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
