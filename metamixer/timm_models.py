"""Mixers in networks of timm: what mixes tokens there is found and gives its place to a mixer of the registry."""

from __future__ import annotations

from fnmatch import fnmatch
from math import isqrt
from typing import Annotated, Any

import timm
import torch
from pydantic import AfterValidator, BeforeValidator, SerializeAsAny
from torch import Tensor, nn

from .architecture import Asked, Mixer
from .config import Config, ConfigError
from .initialise import Construction, Init, initialise, seeded
from .mixer import build_mixer, resolve_mixer
from .operation import Site

# the last parts of the names of timm's token mixers: ViT, DeiT, Swin; MetaFormers; ConvNeXt
TOKEN_MIXERS = ("attn", "token_mixer", "conv_dw")

Size = tuple[int, int]


def _known(name: str) -> str:
    if not timm.is_model(name):
        raise ConfigError(f"no timm model {name!r}; `timm.list_models()` lists them")
    return name


class TimmConfig(Config):
    """A classifier of timm, with mixers in the place of its own.

    Attributes:
        timm: its name.
        arguments: more arguments of `timm.create_model`.
        replace: mixers by the names of what they replace, which may hold `*` (see `replace_mixers`).
    """

    timm: Annotated[str, AfterValidator(_known)]
    arguments: dict[str, Any] = {}
    replace: dict[str, Annotated[SerializeAsAny[Mixer], BeforeValidator(resolve_mixer)]] = {}


class InPlace(nn.Module):
    """A mixer in the place of a module of another network: maps (B, C, H, W) or tokens (B, N, C) in and out.

    Masks are not applied, so in Swin's shifted windows opposite edges of the map are mixed.

    Args:
        size: height and width of the map that tokens are laid out as.
    """

    def __init__(self, mixer: nn.Module, size: Size) -> None:
        super().__init__()
        self.mixer, self.size = mixer, size

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        if x.ndim == 4:
            return self.mixer(x)
        return self.mixer(x.mT.unflatten(2, self.size)).flatten(2).mT


def of_size(name: str, img_size: Size, **arguments: Any) -> Any:
    """A timm model for images of this size; convolutional ones know none."""
    try:
        return timm.create_model(name, img_size=img_size, **arguments)
    except TypeError:
        return timm.create_model(name, **arguments)


def build_timm(config: TimmConfig, asked: Asked) -> nn.Module:
    """The network of a configuration. It pools as timm has it; `init` is for the mixers alone.

    Raises ConfigError: timm does not take the arguments, or a mixer does not fit its place.
    """
    if not asked.global_pool:
        raise ConfigError(f"timm model {config.timm!r} answers once for an image; this task asks for every cell")
    arguments = {"num_classes": asked.num_classes, "in_chans": asked.in_chans, **config.arguments}
    if asked.drop_path_rate:
        arguments["drop_path_rate"] = asked.drop_path_rate
    try:
        with seeded(asked.seed, "timm"):
            model = of_size(config.timm, asked.img_size, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ConfigError(f"timm model {config.timm!r}: {' '.join(str(error).split())}") from None
    for where, mixer in config.replace.items():
        replace_mixers(model, where, mixer, (asked.in_chans, *asked.img_size), asked.seed, asked.init)
    return model


def replace_mixers(
    model: nn.Module,
    where: str,
    mixer: Any,
    input_size: tuple[int, int, int] | None = None,
    seed: int | None = None,
    init: Init = "ffnet",
) -> list[str]:
    """Put a mixer in the place of those token mixers of a timm network whose names fit `where`.

    All else keeps its weights. With a class token among them, the tokens are laid out as one row, so the mixer must
    treat all places alike.

    Args:
        where: `*` for all, `stages.2.*`, `blocks.0.attn`; or the exact name of any other module.
        mixer: a mixer in any form that a configuration takes.
        input_size: (C, H, W) of the images; the network's own if None.
        seed: what the mixers' initial values follow from, with their names; torch's own generator if None.

    Returns:
        The names of what was replaced.

    Raises ConfigError: nothing has such a name; a module that changes the size of its input; or a mixer that does not
    fit.
    """
    config = resolve_mixer(mixer)
    there = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in TOKEN_MIXERS]
    names = [name for name in there if fnmatch(name, where)] or [n for n, _ in model.named_modules() if n == where]
    if not names:
        raise ConfigError(f"{where!r} fits no token mixer of the network; there are {', '.join(there) or 'none'}")
    size: Any = input_size or model.pretrained_cfg["input_size"]  # type: ignore[index]
    sites = _sites(model, names, size, seed)
    prefix: int = getattr(model, "num_prefix_tokens", 0)
    with Construction() as construction:
        mixers = nn.ModuleDict({name.replace(".", "/"): _built(config, site, prefix) for name, site in sites.items()})
    initialise(mixers, construction, seed, init)
    mixers.to(next(model.parameters()).device, next(model.parameters()).dtype)
    for (name, site), built in zip(sites.items(), mixers.values(), strict=True):
        model.set_submodule(name, InPlace(built, (site.height, site.width)).train(model.training))
    return names


def _built(config: Mixer, site: Site, prefix: int) -> nn.Module:
    try:
        mixer = build_mixer(config, site)
    except ValueError as error:
        raise ConfigError(f"{site.place}: {error}") from None
    if prefix and not _knows_no_places(mixer.eval(), site):
        raise ConfigError(
            f"{site.place} takes {prefix} class or other tokens beside the map, but this mixer depends on the places "
            'of tokens: leave those out, e.g. by the arguments {"class_token": false, "global_pool": "avg"}'
        )
    return mixer


@torch.no_grad()
def _knows_no_places(mixer: nn.Module, site: Site) -> bool:
    """Whether other places of its tokens change nothing but the places of its answers."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, site.dim, 1, site.width, generator=generator)
    order = torch.randperm(site.width, generator=generator)
    before, after = mixer(x)[..., order], mixer(x[..., order])
    return bool((after - before).norm() <= 1e-4 * before.norm())


@torch.no_grad()
def _sites(model: nn.Module, names: list[str], input_size: tuple[int, int, int], seed: int | None) -> dict[str, Site]:
    """Where in the network these modules stand, in their order, from what they take and give for one image."""
    found, prefix = dict[str, Site](), getattr(model, "num_prefix_tokens", 0)

    def look(name: str, given: Tensor, answer: Tensor) -> None:
        if given.shape != answer.shape:
            sizes = f"{tuple(answer.shape[1:])} of {tuple(given.shape[1:])}"
            raise ConfigError(f"{name} makes {sizes}: only what keeps the size of its input can be replaced")
        if given.ndim == 4:
            dim, height, width = given.shape[1:]
        else:
            tokens, dim = given.shape[1:]
            height = isqrt(tokens)
            if prefix:
                height = 1
            elif height**2 != tokens:
                height = round((tokens * input_size[1] / input_size[2]) ** 0.5)
            width = tokens // height
            if height * width != tokens:
                raise ConfigError(f"{name} takes {tokens} tokens, which make no map")
        found[name] = Site(dim, height, width, name, seed)

    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, given, answer, name=name: look(name, given[0], answer)
        )
        for name in names
    ]
    training = model.training
    try:
        model.eval()(next(model.parameters()).new_zeros(1, *input_size))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {name: found[name] for name in names}
