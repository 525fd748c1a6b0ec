"""Mixers whose operations are computed at once, equal to the slots but cheaper."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .operation import REGISTRY, Site, resolve
from .ops._common import split_heads
from .ops.activation import Differential, Elementwise, Identity, L1Norm, OfMean, Softmax
from .ops.dot_product import Delta, Polarity, ScaledDot
from .ops.values import Matmul, PartMatmul, StateSpace
from .slots import MetaMixer, MetaMixerConfig, fast_path

# coefficients of an image that are held at once, if heads had one channel: those of 64 channels on a map 32 wide
LARGEST = 2**26


class _DotProduct(MetaMixer):
    """What the fast paths of query-key dot products share."""

    @classmethod
    def applies(cls, config: MetaMixerConfig, site: Site) -> bool:
        return getattr(config.query_key, "bias", "none") == "none"

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scaled queries, keys and what is summed, (B, heads, d, N) each, and the values as a map."""
        q, k = self.query_key.operands(self.query(x), x)  # type: ignore[operator]
        v = self.coefficient_value.values(x)  # type: ignore[operator]
        return q, k, self.coefficient_value.operand(v, x), v  # type: ignore[operator]

    def merge(self, y: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return self.coefficient_value.merge(y, v, x)  # type: ignore[operator]


def _rows(x: Tensor) -> Tensor:
    """(B, heads, d, N) → (B, heads, N, d); fused kernels want the channels of a head next to each other in memory."""
    return x.transpose(-2, -1).contiguous()


def _slots(mixer: MetaMixer) -> tuple[Any, Any]:
    """Query-key and coefficient-value interaction, whose attributes their base classes do not have."""
    return mixer.query_key, mixer.coefficient_value


@fast_path(ScaledDot, Softmax, Matmul)
class SoftmaxAttention(_DotProduct):
    """softmax(QKᵀ)V by the fused kernel, which never holds the coefficients."""

    @classmethod
    def applies(cls, config: MetaMixerConfig, site: Site) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        q, k, summed, v = self.operands(x)
        q, k, summed = _rows(q), _rows(k), _rows(summed)
        if self.query_key.bias is None:
            y = F.scaled_dot_product_attention(q, k, summed, scale=1.0)
        else:
            bias = self.query_key.bias(x).to(q.dtype).unsqueeze(0)  # type: ignore[operator]
            y = F.scaled_dot_product_attention(q, k, summed, attn_mask=bias, scale=1.0)
        return self.merge(y.transpose(-2, -1), v, x)


@fast_path(ScaledDot, Softmax, PartMatmul)
class PartAttention(MetaMixer):
    """One head on the first channels, normalised once for all projections; the slots take a tenth more time.

    It splits X once too: each separate cut of X adds a pass over the whole map to the backward pass.
    """

    @classmethod
    def applies(cls, config: MetaMixerConfig, site: Site) -> bool:
        query, part = config.query, config.coefficient_value.part  # type: ignore[attr-defined]
        key = resolve("query_key", {"name": "scaled_dot", "head_dim": None, "norm": True, "part": part})
        return config.query_key == key and query.name == "linear" and query.part == part  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        first, passing = x.split(self.coefficient_value.split, dim=1)  # type: ignore
        first = self.query.proj[0](first)  # type: ignore
        q = self.query.ending(self.query.proj[1](first)) * self.query.out_dim**-0.5  # type: ignore
        k, v = self.query_key.key[1](first), self.coefficient_value.value[1](first)  # type: ignore
        scores = split_heads(q, 1).transpose(-2, -1) @ split_heads(k, 1)
        return self.coefficient_value.merge(self.activation(scores), v, passing)  # type: ignore[operator]

    def state_size(self, x: Tensor) -> int:
        channels = self.query.out_dim + _slots(self)[1].split[0]  # of keys and values
        return channels * x.shape[2] * x.shape[3] + 4  # two slots count a mean and a variance of their own


@fast_path(ScaledDot, Differential, Matmul)
class DifferentialAttention(_DotProduct):
    """The slots with tokens as rows, which matrix products of large maps are faster with."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, summed, v = self.operands(x)
        y = self.activation(_rows(q) @ k) @ _rows(summed)
        return self.merge(y.transpose(-2, -1), v, x)

    def state_size(self, x: Tensor) -> int:
        return 2 * self.query.out_dim * x.shape[2] * x.shape[3]


@fast_path(ScaledDot, Identity, StateSpace)
@fast_path(ScaledDot, Identity, Matmul)
class LinearAttention(_DotProduct):
    """(QKᵀ)V as Q(KᵀV): linear in N. With heads of one channel, Q ⊙ Σ(K ⊙ V)."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, summed, v = self.operands(x)
        if self.query_key.head_dim == 1:
            return self.merge((k * summed).sum(-1, keepdim=True) * q, v, x)
        return self.merge((summed @ k.transpose(-2, -1)) @ q, v, x)

    def state_size(self, x: Tensor) -> int:
        key, value = _slots(self)
        return value.channels * key.key_dim  # a matrix for each head


@fast_path(Polarity, L1Norm, Matmul)
@fast_path(ScaledDot, L1Norm, Matmul)
class NormalizedLinearAttention(_DotProduct):
    """The same with each token's coefficients divided by their sum, Q Σ K, where none is negative."""

    @classmethod
    def applies(cls, config: MetaMixerConfig, site: Site) -> bool:
        key = config.query_key
        if key.name == "polarity":
            return True
        # a positive function and no LayerNorm behind it, on both sides, and no rotation
        positive = all(
            getattr(op, "activation", "") in ("relu", "elu_plus_one") and getattr(op, "normalize", "") != "layer"
            for op in (config.query, key)
        )
        return positive and super().applies(config, site) and not getattr(key, "rotary", False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, summed, v = self.operands(x)
        total = k.sum(-1, keepdim=True).transpose(-2, -1) @ q  # (B, heads, 1, N)
        eps: float = self.activation.eps  # type: ignore[assignment]
        return self.merge((summed @ k.transpose(-2, -1)) @ q / (total + eps), v, x)

    def state_size(self, x: Tensor) -> int:
        key, value = _slots(self)
        weights = self.query.out_dim + key.heads if getattr(key, "weighted", False) else 0  # the mean query, a softmax
        return (value.channels + key.heads) * key.key_dim + weights  # and the sum of the keys


class LinearOfMean(_DotProduct):
    """Coefficients that are linear in the scores, by terms of their mean: from Q(KᵀV) and the mean of V."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, summed, v = self.operands(x)
        slope, offset = self.activation.terms(k.mean(-1, keepdim=True).transpose(-2, -1) @ q)  # type: ignore[operator]
        y = (summed @ k.transpose(-2, -1)) @ q * (slope / k.shape[-1])
        return self.merge(y + offset * summed.mean(-1, keepdim=True), v, x)

    def state_size(self, x: Tensor) -> int:
        key, value = _slots(self)
        return (value.channels + key.heads) * key.key_dim + value.channels  # and the means of keys and values


@fast_path(Delta, Identity, Matmul)
class DeltaRule(_DotProduct):
    """The triangular system solved for what is written, not for the coefficients: d columns instead of N."""

    def forward(self, x: Tensor) -> Tensor:
        v = self.coefficient_value.values(x)  # type: ignore[operator]
        read, corrected, beta = self.query_key.system(self.query(x), x)  # type: ignore[operator]
        wanted = self.coefficient_value.operand(v, x).transpose(-2, -1) * beta  # type: ignore[operator]
        written = torch.linalg.solve_triangular(corrected, wanted, upper=False, unitriangular=True)
        return self.merge((read @ written.to(read.dtype)).transpose(-2, -1), v, x)

    def state_size(self, x: Tensor) -> int:
        key, value = _slots(self)
        return value.channels * key.head_dim  # of its recurrent form


class ChunkedAttention(_DotProduct):
    """f(QKᵀ)V for a function of each score alone, some queries at a time, where all coefficients would need gigabytes.

    In training a chunk's coefficients are computed again in the backward pass, so that none are kept.
    """

    def __init__(self, config: MetaMixerConfig, site: Site) -> None:
        super().__init__(config, site)
        self.chunks = -(-_coefficients(site) // LARGEST)

    @classmethod
    def applies(cls, config: MetaMixerConfig, site: Site) -> bool:
        return super().applies(config, site) and _coefficients(site) > LARGEST

    def forward(self, x: Tensor) -> Tensor:
        q, k, summed, v = self.operands(x)
        parts = torch.tensor_split(q, self.chunks, dim=-1)
        return self.merge(torch.cat([self.chunk(parts[i], k, summed) for i in range(self.chunks)], -1), v, x)

    def chunk(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.training and not torch.jit.is_scripting():
            return checkpoint(self.rows, q, k, v, use_reentrant=False)
        return self.rows(q, k, v)

    def rows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, heads, d, n), keys and values (B, heads, d, N) → sums of values (B, heads, d, n)."""
        return v @ self.activation(q.transpose(-2, -1) @ k).transpose(-2, -1)

    def state_size(self, x: Tensor) -> int:
        return 2 * self.query.out_dim * x.shape[2] * x.shape[3]


def _coefficients(site: Site) -> int:
    return site.dim * (site.height * site.width) ** 2


for _activation in REGISTRY["activation"].values():
    if issubclass(_activation, Elementwise):
        fast_path(ScaledDot, _activation, Matmul)(ChunkedAttention)
    elif issubclass(_activation, OfMean):
        fast_path(ScaledDot, _activation, Matmul)(LinearOfMean)
