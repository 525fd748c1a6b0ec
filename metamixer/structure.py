"""Do two networks differ in what their configurations say, and in nothing else?

An ablation is worth its runs only if a variant changes one thing. A configuration can hide a second: in FFNet's
released code, 7×7 convolutions alone have BatchNorm and a parallel branch, so a sweep over kernel sizes toggles both.
So the built networks are compared module by module, and each difference must follow from one of the configurations:
a number may change sizes where it stands (and in the mixer around it, whose slots hand their channels on), another
operation or a switch may change everything in its slot, and nothing may change anywhere else.
"""

from __future__ import annotations

import re
from functools import lru_cache

from torch import nn

from .config import differences
from .operation import SLOTS
from .training.config import Recipe, RunConfig

_MIXER = re.compile(r"model\.stages\.(\d+)\.((?:token|channel)_mixer)(?:\.(\d+))?(?:\.(\w+))?(?:\..*)?$")
_PARTS = {  # what else a key of the configuration builds
    "model.norm": r"(token|channel)_norm(\..*)?",
    "model.layer_scale": r"(token|channel)_scale(\..*)?",
    "model.squeeze_excite": r"squeeze_excite(\..*)?",
    "recipe.drop_path": r"drop_path(\..*)?",
}
_SIZES = re.compile(r"model\.stages\.\d+\.width$|model\.stem_width$|model\.stem_stride$|data\.")


def structure(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Type of each module by its name, and its own sizes: settings and the shapes of what it holds itself."""
    found = {}
    for name, module in model.named_modules():
        held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        shapes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in held)
        own = "" if any(True for _ in module.children()) else module.extra_repr()
        found[name] = (type(module).__name__, f"{own}; {shapes}")
    return found


def unexplained(base: RunConfig, other: RunConfig) -> list[str]:
    """Modules in which the two runs' networks differ though no difference of their configurations accounts for it.

    Returns:
        A line each, e.g. `stages.2.blocks.0.token_mixer.query_key.norm: only with the change (BatchNorm2d)`.
    """
    free, sizes = _explained(base, other)
    a, b = _built(base), _built(other)
    found = []
    for name in dict.fromkeys([*a, *b]):
        ours, theirs = a.get(name), b.get(name)
        if ours == theirs or any(pattern.fullmatch(name) for pattern in free):
            continue
        same_kind = ours is not None and theirs is not None and ours[0] == theirs[0]
        if same_kind and any(pattern.fullmatch(name) for pattern in sizes):
            continue
        if ours is None or theirs is None:
            which, kind = ("only with", theirs) if ours is None else ("only without", ours)
            found.append(f"{name}: {which} the change ({kind[0] if kind else ''})")
        else:
            what = f"{ours[1]} → {theirs[1]}" if same_kind else f"{ours[0]} → {theirs[0]}"
            found.append(f"{name}: {what}")
    return found


def _explained(base: RunConfig, other: RunConfig) -> tuple[list[re.Pattern[str]], list[re.Pattern[str]]]:
    """Names of modules that may differ in every way, and of those that may differ in their sizes."""
    free, sizes = [], []
    for key, values in differences(base, other).items():
        number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        mixer = _MIXER.match(key)
        if mixer:
            stage, kind, block, slot = mixer.groups()
            which = block or r"\d+"
            place = rf"stages\.{stage}\.blocks\.{which}\.{kind}"
            free.append(place)  # the container itself: a fast path is another class
            sizes.append(rf"{place}\..*")
            if not number:
                free.append(rf"{place}\.{slot}(\..*)?" if slot in SLOTS else rf"{place}(\..*)?")
        elif _SIZES.match(key):
            sizes.append(r".*")
            if key == "model.stem_stride":
                free.append(r"stem(\..*)?")
        elif key.startswith("model.stages."):  # depth
            free.append(rf"stages\.{key.split('.')[2]}\.blocks(\..*)?")
            free.append(r".*\.drop_path")  # whose rate grows over all blocks
        elif key.startswith("model.downsample."):
            free.append(r"stages\.\d+\.downsample(\..*)?")
        elif key in _PARTS:
            free.append(rf"stages\.\d+\.blocks\.\d+\.{_PARTS[key]}")
    return [re.compile(p) for p in dict.fromkeys(free)], [re.compile(p) for p in dict.fromkeys(sizes)]


@lru_cache(maxsize=64)
def _built_of(network: str) -> dict[str, tuple[str, str]]:
    return structure(RunConfig.model_validate_json(network).build(device="meta"))


def _built(config: RunConfig) -> dict[str, tuple[str, str]]:
    """Structure of a run's network, built once for all runs that build the same one."""
    recipe = Recipe(drop_path=config.recipe.drop_path)  # all that a network takes from it
    return _built_of(config.model_copy(update={"seed": 0, "recipe": recipe}).model_dump_json())
