"""What several operations share: parameter types and the split into heads."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from ..operation import OperationConfig


def _odd(value: int) -> int:
    if value < 1 or value % 2 == 0:
        raise ValueError(f"a kernel size is an odd number from 1, got {value}")
    return value


Kernel = Annotated[int, AfterValidator(_odd)]
Ratio = Annotated[float, Field(gt=0)]


class DepthwiseConfig(OperationConfig):
    """K×K depthwise convolution: kernel size, normalisation and parallel branch are independent."""

    kernel_size: Kernel = 7
    norm: bool = False
    small_kernel: Kernel | None = None

    @model_validator(mode="after")
    def _branch_is_smaller(self) -> Any:
        if self.small_kernel is not None and self.small_kernel >= self.kernel_size:
            raise ValueError(
                f"small_kernel {self.small_kernel} must be smaller than kernel_size {self.kernel_size}"
            )
        return self


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, heads·d, H, W) → (B, heads, d, N)."""
    return x.reshape(x.shape[0], heads, x.shape[1] // heads, x.shape[2] * x.shape[3])


def count_heads(what: str, dim: int, head_dim: int) -> int:
    """Number of heads of `head_dim` channels in `dim`; a ValueError if it does not divide."""
    if dim % head_dim:
        raise ValueError(f"{what}: {dim} channels do not divide into heads of {head_dim}; change head_dim or the width")
    return dim // head_dim
