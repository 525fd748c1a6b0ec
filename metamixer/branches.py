"""The size of residual branches relative to their inputs: where mixers start unequal, and how to start them equal."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .backbone import Block
from .config import ConfigError
from .fold import NORMS


def probed(input_size: tuple[int, int, int]) -> int:
    """How many images of `input_size` (C, H, W) a branch is measured on: 128, fewer large ones."""
    return min(128, max(8, 2**20 // (input_size[1] * input_size[2])))


def noise(input_size: tuple[int, int, int]) -> Tensor:
    """A batch of normal noise (B, C, H, W), always the same."""
    return torch.randn(probed(input_size), *input_size, generator=torch.Generator().manual_seed(0))


def branch_ratios(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Standard deviation of every branch over that of its input, by the name of its mixer.

    Norms use the statistics of `inputs` (B, C, H, W); the model is left as it was.
    """
    ratios = {}

    def look(name: str, block: Block, x: Tensor) -> None:
        token = block.token_branch(x)
        ratios[f"{name}.token_mixer"] = _ratio(token, x)
        summed = block.after(x + token)
        ratios[f"{name}.channel_mixer"] = _ratio(block.channel_branch(summed), summed)

    _at_each_block(model, inputs, look)
    return ratios


def token_range(model: nn.Module, input_size: tuple[int, int, int]) -> tuple[float, float]:
    """The smallest and the largest ratio of the token mixers' branches, on noise; NaN where there are none."""
    ratios = branch_ratios(model, noise(input_size))
    tokens = [ratio for name, ratio in ratios.items() if name.endswith("token_mixer")]
    return min(tokens, default=math.nan), max(tokens, default=math.nan)


def equalize(model: nn.Module, ratio: float, input_size: tuple[int, int, int]) -> None:
    """Scale weights so that every token mixer's branch has `ratio` times its input's standard deviation, on noise.

    The weights are those of layer scale, else of the mixer's last layer, else of the norm in front of the mixer. The
    factors have three digits, so that rounding errors of the measurement change nothing. On the meta device, where
    only sizes matter, nothing is scaled.

    Raises ConfigError: a mixer ends without weights, or starts at zero; or there is none.
    """
    if not any(isinstance(module, Block) for module in model.modules()):
        raise ConfigError("recipe.branch_ratio: the network has no token mixers; set it to null")
    if any(parameter.is_meta for parameter in model.parameters()):
        return

    def scale(name: str, block: Block, x: Tensor) -> None:
        found = _ratio(block.token_branch(x), x)
        scaling = _scaling(block, x[:2])
        if not scaling or not found:
            reason = "starts at zero" if scaling else "ends without weights: give the model a norm or layer_scale"
            raise ConfigError(f"recipe.branch_ratio: the token mixer of {name} {reason}")
        factor = float(f"{ratio / found:.3g}")
        for key, parameter in block.named_parameters():
            if any(parameter is each for each in scaling):
                parameter.mul_(factor)
                model.get_parameter(f"{name}.{key}").mul_(factor)

    _at_each_block(model, noise(input_size), scale)


def _ratio(branch: Tensor, x: Tensor) -> float:
    return float(branch.double().std() / x.double().std())


@torch.no_grad()
def _at_each_block(model: nn.Module, inputs: Tensor, do: Callable[[str, Block, Tensor], None]) -> None:
    """Call `do` with the name, the block and its input, in a copy of the model that runs on `inputs`.

    Its BatchNorms use the statistics of the batch. What `do` changes in a block changes the inputs of the next ones.
    """
    twin = copy.deepcopy(model).eval()
    for name, module in twin.named_modules():
        if isinstance(module, NORMS):
            module.running_mean = module.running_var = None
        if isinstance(module, Block):
            module.register_forward_pre_hook(lambda block, given, name=name: do(name, block, given[0]))
    twin(inputs)


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
