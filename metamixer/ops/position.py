"""Where tokens stand to each other: biases of scores, and the rotation of queries and keys.

All follow from the size of the map, so that they cost no products at inference, apart from the rotation itself.
"""

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..counters import register_cost
from ..operation import Site


class RelativeBias(nn.Module):
    """A learned number for each head and offset of a key from its query (Swin, arXiv 2103.14030).

    The table holds the offsets of the map that it was built for. Keys that are farther away share the farthest
    number, so other map sizes work too. A map x (B, C, H, W) → (heads, N, N).
    """

    def __init__(self, heads: int, site: Site) -> None:
        super().__init__()
        table = torch.empty(heads, 2 * site.height - 1, 2 * site.width - 1)
        self.table = nn.Parameter(trunc_normal_(table, std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        return _relative(self.table, x.shape[2], x.shape[3])


class ManhattanDecay(nn.Module):
    """γ^distance as a bias: log γ times the distance in rows plus that in columns.

    γ = 1 - 2^(-2 - 4h/heads) for head h. Source: RMT, arXiv 2309.11523, with the numbers of its first stage.
    A map x (B, C, H, W) → (heads, N, N).
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        return _decay(x, self.heads)


class RotaryTable(nn.Module):
    """Cosines and sines of the angles that channels are rotated by, (d, N) each, for a map x (B, C, H, W).

    Half of a head's d channels turn with the row, half with the column, in pairs of neighbours; pair i by
    10000^(-4i/d) a step. Source: RoFormer, arXiv 2104.09864, in 2-D as in arXiv 2403.13298.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"query_key 'scaled_dot': rotary needs heads of a multiple of 4 channels, got {head_dim}")
        self.bands = head_dim // 4

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        angles = _angles(x, self.bands)
        return angles.cos(), angles.sin()


for _constant in (RelativeBias, ManhattanDecay, RotaryTable):
    register_cost(_constant, lambda module, x: 0)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channels of x (B, heads, d, N) in pairs of neighbours, each pair turned by its angle."""
    turned = torch.stack([-x[:, :, 1::2], x[:, :, 0::2]], 3).flatten(2, 3)
    return x * cos + turned * sin


def _offsets(size: int, reach: int, x: Tensor) -> Tensor:
    """(size, size): key minus query, cut off at ±reach, counted from 0."""
    places = torch.arange(size, device=x.device)
    return (places[None] - places[:, None]).clamp(-reach, reach) + reach


def _relative(table: Tensor, height: int, width: int) -> Tensor:
    rows = _offsets(height, table.shape[1] // 2, table)
    columns = _offsets(width, table.shape[2] // 2, table)
    bias = table[:, rows][:, :, :, columns]  # (heads, H, H, W, W)
    return bias.transpose(2, 3).reshape(table.shape[0], height * width, height * width)


def _decay(x: Tensor, heads: int) -> Tensor:
    height, width = x.shape[2], x.shape[3]
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    rows, columns = (rows[None] - rows[:, None]).abs(), (columns[None] - columns[:, None]).abs()
    distance = (rows[:, None, :, None] + columns[None, :, None, :]).reshape(height * width, height * width)
    head = torch.arange(heads, device=x.device, dtype=torch.float32)[:, None, None]
    return ((1 - 2 ** (-2 - 4 * head / heads)).log() * distance).to(x.dtype)


def _angles(x: Tensor, bands: int) -> Tensor:
    height, width = x.shape[2], x.shape[3]
    speed = 10000 ** (-torch.arange(bands, device=x.device, dtype=torch.float32) / bands)
    speed = speed[:, None].expand(bands, 2).reshape(2 * bands, 1, 1)  # (d/2, 1, 1)
    rows = (speed * torch.arange(height, device=x.device)[:, None]).expand(2 * bands, height, width)
    columns = (speed * torch.arange(width, device=x.device)).expand(2 * bands, height, width)
    return torch.cat([rows, columns]).flatten(1).to(x.dtype)  # (d, N)


# sizes are symbolic under fx, which torch.arange does not take
for _function in ("_relative", "_decay", "_angles"):
    torch.fx.wrap(_function)
