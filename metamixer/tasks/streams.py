"""Random numbers for samples that are made where they are used: integers alone, so every device draws the same.

Each sample has a stream of its own, started at a hash of (seed, index). The generator is splitmix64, as in
`metamixer.rng`, here in torch's 64-bit integers, whose sums and products wrap around.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ..rng import permutation


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


_GAMMA = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


class Streams:
    """The streams of the samples `indices` (B,); each method takes the next words of every stream.

    A sample's numbers depend on `seed`, its index and what was drawn before, not on the rest of the batch.
    """

    def __init__(self, seed: int, indices: Tensor) -> None:
        self.device = indices.device
        self._keys = _mix(indices * _GAMMA + seed)
        self._drawn = 0

    def words(self, *shape: int) -> Tensor:
        """64 random bits each, int64 of shape (B, *shape)."""
        first, self._drawn = self._drawn + 1, self._drawn + prod(shape)
        counters = torch.arange(first, self._drawn + 1, device=self.device) * _GAMMA
        return _mix(self._keys[:, None] + counters).view(len(self._keys), *shape)

    def integers(self, high: int | Tensor, *shape: int) -> Tensor:
        """Uniform on 0 … high - 1, int64 of shape (B, *shape); `high`, at most 2³¹, may be one for each."""
        return (_shifted(self.words(*shape), 33) * high) >> 31

    def permutations(self, n: int) -> Tensor:
        """An order of 0 … n - 1 for each sample, int64 of shape (B, n)."""
        return self.words(n).argsort(stable=True)


def shuffled(seed: int, indices: Tensor, count: int, used: int | None = None) -> tuple[Tensor, Tensor]:
    """Epochs and numbers of training samples from a finite set, both int64 (B,).

    Each epoch takes `used` (all if None) of the numbers 0 … count - 1, in another order.
    """
    epochs, places = indices // (used or count), indices % (used or count)
    pairs = zip(epochs.tolist(), places.tolist(), strict=True)
    return epochs, torch.stack([_order(seed, epoch, count)[place] for epoch, place in pairs])


@lru_cache(2)
def _order(seed: int, epoch: int, count: int) -> Tensor:
    return torch.from_numpy(permutation(seed, epoch, count))
