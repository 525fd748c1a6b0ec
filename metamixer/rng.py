"""Seeds and orders as pure functions of what they are for, so that a restart or another worker changes no draw.

The order of an epoch is drawn by splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
2014).
"""

import hashlib
import numbers

import numpy as np
import torch
from torch import Tensor


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


GAMMA = _signed(0x9E3779B97F4A7C15)  # splitmix64's increment: 2**64 divided by the golden ratio, made odd
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


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


def shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """splitmix64's output function, in torch's 64-bit integers, whose sums and products wrap around."""
    x = (x ^ shifted(x, 30)) * _FIRST
    x = (x ^ shifted(x, 27)) * _SECOND
    return x ^ shifted(x, 31)


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """A shuffle of 0 … n - 1, int64, fixed by (seed, epoch, n) and independent of torch's generators."""
    keys = torch.arange(n) * GAMMA + derive(derive(seed, "permutation"), epoch)
    unsigned = mix(mix(keys) + GAMMA) ^ -(2**63)  # which torch orders as if they had no sign
    return unsigned.argsort(stable=True).numpy()
