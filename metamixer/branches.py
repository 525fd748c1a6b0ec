"""The size of residual branches relative to their inputs: where mixers start unequal, and how to start them equal."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .backbone import Backbone, Block
from .config import ConfigError
from .fold import NORMS


def probed(input_size: tuple[int, int, int]) -> int:
    """How many images of `input_size` (C, H, W) a branch is measured on: 128, fewer large ones."""
    return min(128, max(8, 2**20 // (input_size[1] * input_size[2])))


def noise(input_size: tuple[int, int, int]) -> Tensor:
    """A batch of normal noise (B, C, H, W), always the same."""
    return torch.randn(probed(input_size), *input_size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def branch_ratios(model: Backbone, inputs: Tensor) -> dict[str, float]:
    """Standard deviation of every branch over that of its input, by the name of its mixer.

    Norms use the statistics of `inputs` (B, C, H, W); the model is left as it was.
    """
    ratios = {}
    for name, block, x in _blocks(_by_batch(model), inputs):
        token = block.token_branch(x)
        ratios[f"{name}.token_mixer"] = _ratio(token, x)
        ratios[f"{name}.channel_mixer"] = _ratio(block.channel_branch(x + token), x + token)
    return ratios


def token_range(model: Backbone, input_size: tuple[int, int, int]) -> tuple[float, float]:
    """The smallest and the largest ratio of the token mixers' branches, on noise."""
    ratios = branch_ratios(model, noise(input_size))
    tokens = [ratio for name, ratio in ratios.items() if name.endswith("token_mixer")]
    return min(tokens), max(tokens)


@torch.no_grad()
def equalize(model: Backbone, ratio: float, input_size: tuple[int, int, int]) -> None:
    """Scale weights so that every token mixer's branch has `ratio` times its input's standard deviation, on noise.

    The weights are those of layer scale, else of the mixer's last layer, else of the norm in front of the mixer. The
    factors have three digits, so that rounding errors of the measurement change nothing.

    Raises:
        ConfigError: a mixer ends without weights, or starts at zero.
    """
    twin = _by_batch(model)
    for name, block, x in _blocks(twin, noise(input_size)):
        found = _ratio(block.token_branch(x), x)
        scaling = _scaling(block, x[:2])
        if not scaling or not found:
            reason = "starts at zero" if scaling else "ends without weights: give the model a norm or layer_scale"
            raise ConfigError(f"recipe.branch_ratio: the token mixer of {name} {reason}")
        factor = float(f"{ratio / found:.3g}")
        for parameter, key in ((p, key) for key, p in block.named_parameters() if any(p is s for s in scaling)):
            parameter.mul_(factor)
            model.get_parameter(f"{name}.{key}").mul_(factor)


def _ratio(branch: Tensor, x: Tensor) -> float:
    return float(branch.double().std() / x.double().std())


def _by_batch(model: Backbone) -> Backbone:
    """A copy whose BatchNorms use the statistics of the batch, and keep none."""
    twin = copy.deepcopy(model).eval()
    for norm in twin.modules():
        if isinstance(norm, NORMS):
            norm.running_mean = norm.running_var = None
    return twin


def _blocks(model: Backbone, inputs: Tensor) -> Iterator[tuple[str, Block, Tensor]]:
    """Each block with its name and its input; what changes it meanwhile changes the inputs of the next ones."""
    x = model.position(model.stem(inputs))
    for i, stage in enumerate(model.stages):
        x = stage.downsample(x)
        for j, block in enumerate(stage.blocks):
            yield f"stages.{i}.blocks.{j}", block, x
            x = block(x)


def _scaling(block: Block, x: Tensor) -> list[nn.Parameter]:
    """Parameters of one layer, the last that can be had, that the token mixer's branch is proportional to."""
    mixer = reversed(list(block.token_mixer.modules()))
    for module in (block.token_scale, *mixer, block.token_norm):
        norms = [p for norm in module.modules() if isinstance(norm, NORMS) for p in norm.parameters()]
        for group in (list(module.parameters(recurse=False)), norms, list(module.parameters())):
            if group and _doubles(block, x, group):
                return group
    return []


def _doubles(block: Block, x: Tensor, parameters: Iterable[nn.Parameter]) -> bool:
    """Whether the branch doubles where the parameters do."""
    once = block.token_branch(x)
    for parameter in parameters:
        parameter.mul_(2)
    twice = block.token_branch(x)
    for parameter in parameters:
        parameter.div_(2)
    return bool((twice - 2 * once).norm() <= 1e-5 * once.norm())
