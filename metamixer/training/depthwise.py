"""Faster training of depthwise convolutions with several outputs a channel, on a CPU.

oneDNN has fast kernels for one output a channel alone. With two (FFNet's downsampling) it took 1.4 to 4.6 times as long
as two convolutions of one output each, forward and backward (32 to 128 channels, maps of 16 to 4, kernels 3 and 7).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SplitDepthwise(nn.Conv2d):
    """A depthwise convolution that trains as one convolution for each of its outputs a channel; the sums are the same.

    In eval mode, and on a GPU, it is the `nn.Conv2d` that it was.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.training or input.device.type != "cpu":
            return super()._conv_forward(input, weight, bias)
        times = self.out_channels // self.in_channels
        parts = [
            nn.Conv2d._conv_forward(self, input, weight[i::times], None if bias is None else bias[i::times])
            for i in range(times)
        ]
        # interleaved in channels-last order: output channel c * times + i belongs to input channel c
        return torch.stack([part.movedim(1, -1) for part in parts], -1).flatten(-2).movedim(-1, 1)


def split_depthwise(model: nn.Module) -> None:
    """Let each depthwise convolution of `model` with several outputs a channel train as a `SplitDepthwise`."""
    for module in model.modules():
        if type(module) is nn.Conv2d and 1 < module.in_channels == module.groups < module.out_channels:
            module.__class__ = SplitDepthwise
