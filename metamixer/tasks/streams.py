"""Random numbers for samples that are made where they are used: integers alone, so every device draws the same.

Each sample has a stream of its own, started at a hash of (seed, index). The generator is splitmix64 (`rng.py`).
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from ..rng import GAMMA, mix, permutation, shifted


class Streams:
    """The streams of the samples `indices` (B,); each method takes the next words of every stream.

    A sample's numbers depend on `seed`, its index and what was drawn before, not on the rest of the batch.
    """

    def __init__(self, seed: int, indices: Tensor) -> None:
        self.device = indices.device
        self._keys = mix(indices * GAMMA + seed)
        self._drawn = 0

    def words(self, *shape: int) -> Tensor:
        """64 random bits each, int64 of shape (B, *shape)."""
        first, self._drawn = self._drawn + 1, self._drawn + prod(shape)
        counters = torch.arange(first, self._drawn + 1, device=self.device) * GAMMA
        return mix(self._keys[:, None] + counters).view(len(self._keys), *shape)

    def integers(self, high: int | Tensor, *shape: int) -> Tensor:
        """Uniform on 0 … high - 1, int64 of shape (B, *shape); `high`, at most 2³¹, may be one for each."""
        return (shifted(self.words(*shape), 33) * high) >> 31

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
