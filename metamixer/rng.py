"""Counter-based random numbers: every draw is a pure function of (seed, epoch, sample index, position).

No generator carries state, so a sample gets the same draws in any batch, in any worker and after any restart.
A purpose gets its own stream by its own seed: `uniforms(derive(seed, "crop"), epoch, indices, 4)`.

The generator is splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014):
one stream for each sample, each started at a hash of (seed, epoch, index).
"""

import hashlib
import numbers

import numpy as np
import torch

_GAMMA = 0x9E3779B97F4A7C15  # splitmix64's increment: 2**64 divided by the golden ratio, made odd


def derive(*parts: int | str) -> int:
    """A 63-bit seed out of a tuple of integers and strings, the same in every process and on every machine.

    The parts' types and borders count: derive("ab"), derive("a", "b"), derive(1) and derive("1") all differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, str):
            text = part.encode()
            digest.update(b"s%d:" % len(text) + text)
        elif isinstance(part, numbers.Integral) and not isinstance(part, bool):
            digest.update(b"i%d:" % int(part))
        else:
            raise ValueError(f"derive takes integers and strings, got {part!r}")
    return int.from_bytes(digest.digest(), "little") >> 1


def _mix(state: np.ndarray) -> np.ndarray:
    """splitmix64's output function, in place on a uint64 array."""
    state ^= state >> 30
    state *= 0xBF58476D1CE4E5B9
    state ^= state >> 27
    state *= 0x94D049BB133111EB
    state ^= state >> 31
    return state


def _unsigned(values: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers, got {array.dtype}")
    return array.astype(np.uint64)


def _words(seed: int, epoch: int, indices: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Word number `positions` of the streams `indices`: uint64, of the shape the two broadcast to."""
    keys = _unsigned(indices, "indices") * _GAMMA
    keys += derive(seed, epoch)
    keys = _mix(keys)
    return _mix(keys + (_unsigned(positions, "positions") + 1) * _GAMMA)


def _table(seed: int, epoch: int, indices: np.ndarray, count: int) -> np.ndarray:
    indices = np.asarray(indices)
    if indices.ndim != 1:
        raise ValueError(f"indices must have one dimension, got shape {indices.shape}")
    return _words(seed, epoch, indices[:, None], np.arange(count)[None, :])


def _gaussian(words: np.ndarray) -> np.ndarray:
    # Half steps of 2**-52 stay clear of 0 and 1, where the quantile is infinite. ndtri is a scalar loop: the
    # same bits whatever the array's length, which vectorised logarithms and cosines do not promise.
    quantiles = ((words >> 12).astype(np.float64) + 0.5) * 2.0**-52
    return torch.special.ndtri(torch.from_numpy(quantiles)).numpy()


def uniforms(seed: int, epoch: int, indices: np.ndarray, count: int) -> np.ndarray:
    """Uniform draws on [0, 1), float64, of shape (len(indices), count); `indices` are sample numbers, 1-D.

    A row depends on (seed, epoch, its index) alone, and its first draws do not depend on `count`.
    """
    return (_table(seed, epoch, indices, count) >> 11).astype(np.float64) * 2.0**-53


def normals(seed: int, epoch: int, indices: np.ndarray, count: int) -> np.ndarray:
    """Standard normal draws, float64, of shape (len(indices), count).

    They come from the same words as `uniforms` with the same arguments: for both, derive two seeds.
    """
    return _gaussian(_table(seed, epoch, indices, count))


def noise(seed: int, epoch: int, indices: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One standard normal, float64, for each pair (index, position), of the two arrays' common shape.

    For noise on part of an image: a position (a flat pixel number) keeps its value whatever else is asked.
    `noise(seed, epoch, indices[:, None], np.arange(count))` equals `normals(seed, epoch, indices, count)`.
    """
    return _gaussian(_words(seed, epoch, indices, positions))


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """A shuffle of 0 … n - 1, int64, fixed by (seed, epoch, n) and independent of NumPy's generators."""
    words = _words(derive(seed, "permutation"), epoch, np.arange(n), np.zeros(1, np.int64))
    return np.argsort(words, kind="stable")
