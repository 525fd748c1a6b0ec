"""Seeds and orders as pure functions of what they are for, so that a restart or another worker changes no draw.

The order of an epoch is drawn by splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
2014).
"""

import hashlib
import numbers

import numpy as np

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


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """A shuffle of 0 … n - 1, int64, fixed by (seed, epoch, n) and independent of NumPy's generators."""
    keys = np.arange(n, dtype=np.uint64) * _GAMMA
    keys += derive(derive(seed, "permutation"), epoch)
    return np.argsort(_mix(_mix(keys) + _GAMMA), kind="stable")
