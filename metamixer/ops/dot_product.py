"""Query-key interactions whose keys are the other tokens or channels: Q (B, C', H, W) → scores of pairs."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import later
from ..operation import Coefficients, Layout, OperationConfig, QueryKey, Site, register
from ._common import ProjectionConfig, at_least_single, ending, heads_of, linear, split_heads, time_steps
from .position import ManhattanDecay, RelativeBias, RotaryTable, rotate

torch.fx.wrap("at_least_single")


class Compared(QueryKey):
    """Keys K = Linear_K(X), compared with the queries head by head; without `head_dim` all channels are one head."""

    source = "dynamic"
    channel_counts = ("head_dim",)

    class Config(OperationConfig):
        head_dim: int | None = Field(default=32, gt=0)

    def __init__(self, config: Config, site: Site, query_dim: int, kernel_size: int = 1) -> None:
        super().__init__(config, site, query_dim)
        self.head_dim = config.head_dim or query_dim
        self.heads = heads_of(f"query_key {self.name!r}", query_dim, self.head_dim)
        self.key_dim = self.head_dim  # of an operand
        self.scale = self.head_dim**-0.5
        self.coefficients = Coefficients(self.makes, query_dim, self.heads, kernel_size)
        self.key = nn.Conv2d(site.dim, query_dim, 1)

    def state_size(self, q: Tensor, x: Tensor) -> int:
        return q[0].numel()  # a key for each token


@register
class ScaledDot(Compared):
    """Scaled dot product of every query token with every key token, K = Linear_K(X) (arXiv 1706.03762).

    `activation` and `normalize` make feature maps of the keys, as in linear attention (arXiv 2006.16236); the
    query has its own. Heads of one channel are Hydra attention (arXiv 2209.07484).
    `norm` and `part`: K is a 1×1 convolution with BatchNorm, of the first part·C channels (SHViT, arXiv 2401.16456).
    `keys_from`: the keys may be the queries themselves. `pool`: they are averaged to a map of pool×pool (PVTv2,
    arXiv 2106.13797; both together are the agents of arXiv 2312.08874).
    `weighted`: each key counts N·softmax over the tokens of its product with the mean query (RALA, arXiv 2411.07635).
    `bias` and `rotary` tell where tokens stand to each other (`position.py`).
    """

    name = "scaled_dot"
    makes = Layout.PAIRS

    class Config(ProjectionConfig, Compared.Config):
        scale: bool = True
        norm: bool = later(False)
        part: float | None = later(None, gt=0, le=1)
        keys_from: Literal["input", "query"] = later("input")
        pool: int = later(0, ge=0)
        weighted: bool = later(False)
        bias: Literal["none", "relative", "decay"] = later("none")
        rotary: bool = later(False)

        @model_validator(mode="after")
        def _keys_have_places(self) -> "ScaledDot.Config":
            if self.pool and (self.rotary or self.bias != "none"):
                raise ValueError("bias and rotary are for the tokens as keys: set pool to 0")
            return self

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        self.norm_scale = self.scale
        self.scale = self.scale if config.scale else 1.0
        self.coefficients = Coefficients(Layout.PAIRS, query_dim, self.heads, pool=config.pool)
        self.from_query = config.keys_from == "query"
        if self.from_query:
            self.key = nn.Identity()  # type: ignore[assignment]
        elif config.norm or config.part is not None:
            self.key = linear(site.dim, query_dim, config.norm, config.part)  # type: ignore[assignment]
        self.pool = nn.AdaptiveAvgPool2d(config.pool) if config.pool else nn.Identity()
        self.ending = ending(query_dim, config.activation, config.normalize, config.kernel_size)
        self.weighted = config.weighted
        self.bias: nn.Module | None = None
        if config.bias == "relative":
            self.bias = RelativeBias(self.heads, site)
        elif config.bias == "decay":
            self.bias = ManhattanDecay(self.heads)
        self.rotary = RotaryTable(self.head_dim) if config.rotary else None

    def operands(self, q: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled queries (B, heads, d, N) and keys (B, heads, d, N or pool²)."""
        k = split_heads(self.ending(self.key(self.pool(q if self.from_query else x))), self.heads)
        q = split_heads(q, self.heads)
        if self.weighted:
            k = k * self.weights(q, k)
        if self.rotary is not None:
            cos, sin = self.rotary(x)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q * self.scale, k

    def state_size(self, q: Tensor, x: Tensor) -> int:
        pool = self.coefficients.pool
        return q.shape[1] * pool**2 if pool else q[0].numel()

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """How much each key counts, (B, heads, 1, N), on average 1."""
        fit = q.mean(-1, keepdim=True).transpose(-2, -1) @ k * self.norm_scale
        return fit.softmax(-1) * k.shape[-1]

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        q, k = self.operands(q, x)
        scores = q.transpose(-2, -1) @ k  # (B, heads, N, N or pool²)
        return scores if self.bias is None else scores + self.bias(x)


@register
class Polarity(Compared):
    """Products of the positive and the negative parts of queries and keys, each to a learned power from 1 to 5.

    Every head has two maps: parts of equal sign, then parts of opposite sign; each sums one half of the head's values.
    Source: PolaFormer, arXiv 2501.15061, without its position encoding of the keys.
    """

    name = "polarity"
    makes = Layout.PAIRS

    def __init__(self, config: Compared.Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        if self.head_dim % 2:
            raise ValueError(f"query_key 'polarity': heads of {self.head_dim} channels have no halves")
        self.coefficients = Coefficients(Layout.PAIRS, query_dim, 2 * self.heads)
        self.key_dim = 2 * self.head_dim
        self.spread = nn.Parameter(torch.zeros(query_dim, 1, 1))
        self.power = nn.Parameter(torch.zeros(query_dim, 1, 1))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Positive and negative parts, (B, heads, d, N) each."""
        x, power = x / F.softplus(self.spread), 1 + 4 * self.power.sigmoid()
        return split_heads(x.relu() ** power, self.heads), split_heads((-x).relu() ** power, self.heads)

    def operands(self, q: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys of both maps of each head, (B, 2·heads, 2d, N)."""
        positive, negative = self.parts(q)
        equal, opposite = torch.cat([positive, negative], 2), torch.cat([negative, positive], 2)
        k = torch.cat(self.parts(self.key(x)), 2)
        return torch.stack([equal, opposite], 2).flatten(1, 2), torch.stack([k, k], 2).flatten(1, 2)

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        q, k = self.operands(q, x)
        return q.transpose(-2, -1) @ k


@register
class Delta(Compared):
    """What a memory that is corrected token by token, in raster order, makes of the values: coefficients of its state.

    Each token reads the state by its key, and writes the difference to its value back, β of it. Queries and keys have
    L2 norm 1. With `gated` the state decays from token to token by a factor of each head. Source: DeltaNet,
    arXiv 2406.06484, and Gated DeltaNet, arXiv 2412.06464, in quadratic form: tril(QKᵀ) (I + tril(βKKᵀ, -1))⁻¹ β.
    """

    name = "delta"
    makes = Layout.PAIRS

    class Config(ProjectionConfig, Compared.Config):
        gated: bool = False

    def __init__(self, config: Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        self.ending = ending(query_dim, config.activation, config.normalize, config.kernel_size)
        self.beta = nn.Conv2d(site.dim, self.heads, 1)
        self.step = time_steps(site.dim, self.heads) if config.gated else nn.Identity()
        self.rate = nn.Parameter(torch.empty(self.heads, 1, 1).uniform_(1, 16).log()) if config.gated else None

    def system(self, q: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is read and what is corrected, triangular (B, heads, N, N), and β (B, heads, N, 1).

        They have float32's range at least, which the triangular system needs.
        """
        q = F.normalize(split_heads(q, self.heads), dim=2) * self.scale
        k = F.normalize(split_heads(self.ending(self.key(x)), self.heads), dim=2)
        beta = self.beta(x).sigmoid().flatten(2).unsqueeze(-1)
        read, corrected = q.transpose(-2, -1) @ k, k.transpose(-2, -1) * beta @ k
        if self.rate is not None:
            time = (-self.rate.exp() * F.softplus(self.step(x))).flatten(2).cumsum(-1)  # (B, heads, N), falls
            decay = (time.unsqueeze(-1) - time.unsqueeze(-2)).clamp(max=0).exp()
            read, corrected = read * decay, corrected * decay
        return read.tril(), at_least_single(corrected.tril(-1)), at_least_single(beta)

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        read, corrected, beta = self.system(q, x)
        written = torch.diag_embed(beta.squeeze(-1))
        return read @ torch.linalg.solve_triangular(corrected, written, upper=False, unitriangular=True).to(read.dtype)


@register
class CrossCovariance(Compared):
    """Every query channel with every key channel of its head, over all tokens: scores (B, heads, d, d).

    Keys have L2 norm 1 over the tokens (the query's own is `normalize="tokens"`), so that scores are cosines,
    times a learned temperature of each head. Source: XCiT, arXiv 2106.09681.
    """

    name = "cross_covariance"
    makes = Layout.CHANNELS

    def __init__(self, config: Compared.Config, site: Site, query_dim: int) -> None:
        super().__init__(config, site, query_dim)
        self.temperature = nn.Parameter(torch.ones(self.heads, 1, 1))

    def state_size(self, q: Tensor, x: Tensor) -> int:
        return q.shape[1] * (self.head_dim + 1)  # the scores, and the norms of the keys

    def forward(self, q: Tensor, x: Tensor) -> Tensor:
        k = F.normalize(split_heads(self.key(x), self.heads), dim=-1)  # (B, heads, d, N)
        return split_heads(q, self.heads) @ k.transpose(-2, -1) * self.temperature
