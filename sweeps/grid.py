"""Grids: a question as a base run, named variants that each change something, and seeds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from rich.progress import track

from metamixer.config import Config, ConfigError, differences, digest_of, digests_of, override
from metamixer.plugins import load_module, loaded, place

if TYPE_CHECKING:
    from metamixer.training.run_config import RunConfig


class Variant(Config):
    """What a variant changes.

    Attributes:
        changes: new values by dotted key (`metamixer.config.override`).
        on: the variant that it builds on; the base run if None.
        also: why it changes more than `changes` names. Without a reason, such a variant is refused.
    """

    changes: dict[str, Any] = {}
    on: str | None = None
    also: str | None = None


class Question(Config):
    """What grids and searches have in common.

    Attributes:
        bases: the base run for each data set or task; the first is the default. One that needs another run's results
            may be a function of the launch's overrides, called where it is chosen.
        modules: files (their paths from the question's file) that register operations of your own.
    """

    # str → RunConfig, or a function that makes one; Any because pydantic would copy and re-validate them
    bases: dict[str, Any] = Field(min_length=1)
    modules: tuple[str, ...] = ()

    def start(self, data: str | None = None, overrides: dict[str, Any] | None = None) -> RunConfig:
        """The run that all others start from.

        Args:
            data: a key of `bases`; the first if None.
            overrides: changes by dotted key.

        Raises ConfigError: no such key, or changes that do not make a run.
        """
        overrides = overrides or {}
        if data is not None and data not in self.bases:
            raise ConfigError(f"no data {data!r}; there are {', '.join(self.bases)}")
        for source in self.modules:
            load_module(source)
        base = self.bases[data or next(iter(self.bases))]
        return override(base(overrides) if callable(base) else base, overrides)


class Grid(Question):
    """A question as data.

    Attributes:
        variants: what is compared, in the order of the tables.
        left_out: variants that can't run yet, with the reason; `plan` shows them.
        base: the variant that differences are taken to.
        seeds: every variant runs once with each; equal seeds make a pair.
        match: scale the widths of every variant until it has the base's "macs" or "params" or, with
            "latency:RUNTIME", takes as long as the base on that runtime (`sweeps.iso_cost`).
        lrs: learning rates at which every variant runs besides its recipe's own, so that none is judged by a rate
            that suits another; a table reports the recipe's and the best on validation data.
    """

    variants: dict[str, Variant]
    left_out: dict[str, str] = {}
    base: str
    seeds: tuple[int, ...] = (0, 1, 2)
    match: str | None = None
    lrs: tuple[Annotated[float, Field(gt=0)], ...] = ()

    def model_post_init(self, _: Any) -> None:
        if self.base not in self.variants:
            raise ConfigError(f"base {self.base!r} is not a variant; there are {', '.join(self.variants)}")
        for name, variant in self.variants.items():
            self._lineage(name)
            if "seed" in variant.changes:
                raise ConfigError(f"variant {name!r} changes seed: every variant runs with each of the grid's `seeds`")

    def _lineage(self, name: str) -> list[str]:
        """Variant `name` and what it builds on, the first change first."""
        lineage = [name]
        while (parent := self.variants[lineage[0]].on) is not None:
            if parent not in self.variants:
                raise ConfigError(f"variant {lineage[0]!r} is on {parent!r}, which is not a variant")
            if parent in lineage:
                raise ConfigError(f"variant {name!r} is built on itself")
            lineage.insert(0, parent)
        return lineage

    def runs(
        self,
        data: str | None = None,
        overrides: dict[str, Any] | None = None,
        seeds: Sequence[int] | None = None,
        only: Sequence[str] | None = None,
        match: str | None = None,
        lrs: Sequence[float] | None = None,
        scale: Callable[[RunConfig, RunConfig, str], RunConfig] | None = None,
    ) -> list[PlannedRun]:
        """Every run of the grid.

        Args:
            data: a key of `bases`; the first if None.
            overrides: changes to the base, before those of the variants.
            seeds: in place of the grid's own.
            only: these variants alone.
            match: in place of the grid's own; "none" leaves the widths alone.
            lrs: in place of the grid's own; none if empty.
            scale: makes a run with other widths of a run, the base and the measure; `iso_cost.matched` if None.

        Raises ConfigError: no such data or variant, a variant that does not make a valid run, or variants that change
        more than they declare (one line for each).
        """
        seeds = self._seeds(seeds)
        if "seed" in (overrides or {}):
            raise ConfigError("seed: a grid runs with each of its seeds: give --seeds, or `seeds` in the grid's file")
        resolved: dict[str | None, RunConfig] = {None: self.start(data, overrides)}
        wanted = self._wanted(only)
        lrs = self.lrs if lrs is None else lrs
        measure = None if match == "none" else match or self.match
        if measure:
            from .iso_cost import check_measure, matched  # load torch

            check_measure(measure)
            scale = scale or matched
        with blaming(self.base):
            reference = self._resolve(self.base, resolved)
        planned, refused = list[PlannedRun](), list[str]()
        # a second or so each
        for name in track(wanted, f"matching {measure}", transient=True, disable=measure is None or len(wanted) < 5):
            variant = self.variants[name]
            with blaming(name):
                config = self._resolve(name, resolved)
                more = undeclared(self._resolve(variant.on or self.base, resolved), config, variant.changes)
                if more and name != self.base and variant.also is None:
                    others = f" and {len(more) - 1} more" if len(more) > 1 else ""
                    refused.append(
                        f"variant {name!r} changes more than it declares: {more[0]}{others}; name this in `changes`, "
                        "or say why in `also`"
                    )
                matching = (reference.identity(), measure) if measure else None
                unscaled, values = config, config.identity()
                origin = digest_of({"run": values, "match": matching})
                if measure and name != self.base and scale:
                    config = scale(config, reference, measure)
            for own, lr in self._at_rates(name, config, lrs):
                # the seed is all that a variant's runs don't share: ten thousand are not validated one by one
                identity = values if own is unscaled else own.identity()
                for seed, hash in zip(seeds, digests_of(identity, "seed", seeds), strict=True):
                    run = own.model_copy(update={"seed": seed})
                    planned.append(PlannedRun(name, seed, run, variant, hash, origin, lr, own is config))
        if refused:
            raise ConfigError("\n".join(refused))
        return planned

    def _seeds(self, chosen: Sequence[int] | None) -> list[int]:
        seeds = list(self.seeds if chosen is None else chosen)
        if any(seed < 0 for seed in seeds):
            raise ConfigError(f"seed {min(seeds)}: a seed is 0 or more")
        if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
            raise ConfigError(f"seed {twice[0]} is given twice: every variant runs once with each seed")
        return seeds

    def _wanted(self, only: Sequence[str] | None) -> list[str]:
        """The variants to run, in the grid's order."""
        for name in only or ():
            if name in self.left_out:
                raise ConfigError(f"variant {name!r} is left out: {self.left_out[name]}")
            if name not in self.variants:
                raise ConfigError(f"no variant {name!r}; there are {', '.join(self.variants)}")
        return [name for name in self.variants if not only or name in only]

    def _at_rates(self, name: str, config: RunConfig, lrs: Sequence[float]) -> list[tuple[RunConfig, float | None]]:
        """A variant's run at its recipe's learning rate, then at the others of a set; the rate is None without one."""
        if not lrs:
            return [(config, None)]
        if any(key.startswith("recipe.lr") for step in self._lineage(name) for key in self.variants[step].changes):
            raise ConfigError(
                f"variant {name!r} changes recipe.lr, which a set of learning rates sets for all variants"
            )
        if not config.data.val_samples:
            raise ConfigError("a set of learning rates is chosen from on validation data: give data.val_samples")
        own = config.recipe.lr
        with blaming(name):
            others = [(override(config, {"recipe.lr": lr}), lr) for lr in dict.fromkeys(lrs) if lr != own]
        return [(config, own), *others]

    def _resolve(self, name: str, resolved: dict[str | None, RunConfig]) -> RunConfig:
        """The run of variant `name`: what it builds on, with its changes; `resolved` holds those known so far."""
        for step in self._lineage(name):
            if step not in resolved:
                variant = self.variants[step]
                below = resolved[variant.on]
                resolved[step] = override(below, variant.changes) if variant.changes else below
        return resolved[name]


def undeclared(parent: RunConfig, config: RunConfig, changes: dict[str, Any]) -> list[str]:
    """Differences between a variant's resolved configuration and its parent's that `changes` do not name.

    A dict that replaces an operation sets every parameter that it does not give to its default: that may be a second
    change. An operation in the place of another one explains all differences below it, and so does what was null.
    Equal differences in several stages are one line, e.g. `model.stages.*.token_mixer.query_key.norm: True → False`.
    """
    found = differences(parent, config)
    declared = re.compile("|".join(_declared(as_json(changes))) or "(?!)")
    lines = []
    for key, (before, after) in found.items():
        parts = key.split(".")
        replaced = any(".".join([*parts[:end], "name"]) in found for end in range(1, len(parts)))
        filled_in = parts[0] == "modules" or parts[-1] == "manifest"  # the user's code, the files of the data
        named = replaced or filled_in or declared.fullmatch(key)
        if not named and not _was_null(parent.to_dict(), parts[:-1]):
            lines.append(re.sub(r"stages\.\d+", "stages.*", key) + f": {before} → {after}")
    return list(dict.fromkeys(lines))


def _was_null(node: Any, parts: list[str]) -> bool:
    """Whether one of the places above a key holds nothing."""
    for part in parts:
        node = node[int(part)] if isinstance(node, list) else node.get(part)
        if node is None:
            return True
    return False


def _declared(changes: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Patterns of the keys that changes name: of a dict the keys in it, of any other value all that lies below."""
    for key, value in changes.items():
        if isinstance(value, dict) and value:
            yield from _declared(value, f"{prefix}{key}.")
        else:
            yield re.escape(prefix + key).replace(r"\*", r"\d+") + r"(\..*)?"


def as_json(changes: dict[str, Any]) -> Any:
    """Changes as JSON types; their values may be configurations."""
    return json.loads(json.dumps(changes, default=lambda config: config.to_dict()))


@contextmanager
def blaming(variant: str) -> Iterator[None]:
    """Turn an error in a variant into a ConfigError that names the variant.

    Where a run has operations of the user's own, that is whatever they raise.
    """
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"variant {variant!r}: {error}") from None
    except Exception as error:
        if not loaded():
            raise
        raise ConfigError(
            f"variant {variant!r}: {place(error)}{type(error).__name__}: {' '.join(str(error).split())}; "
            "`launch.py check OPERATION --module FILE` shows which promises it breaks; where widths are scaled, a "
            "parameter that counts channels must be in the operation's `channel_counts`"
        ) from None


@dataclass(frozen=True)
class PlannedRun:
    """One run of a grid."""

    variant: str
    seed: int
    config: RunConfig
    declared: Variant
    hash: str  # `metamixer.digest` of the configuration
    origin: str = ""  # digest of what the variant's runs come from, whatever their seeds and rates
    lr: float | None = None  # of a set of learning rates
    fixed: bool = True  # whether `lr` is the recipe's own
    pair: int | None = None  # what tables pair runs by; the seed if None

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}" + (f" at {self.lr:g}" if self.lr is not None else "")


@dataclass(frozen=True)
class LoadedGrid:
    """A grid with its name and the question in its file's docstring."""

    name: str
    question: str
    grid: Grid


def data_label(data: str, overrides: dict[str, Any]) -> str:
    """Name of a key of bases with overrides, fit for a file: `digits`, `digits+recipe.epochs=3`."""
    text = ",".join(f"{key}={value}" for key, value in sorted(overrides.items()) if key != "tensorboard")
    if not text:
        return data
    safe = "".join(c if c.isalnum() or c in "=.,-_" else "_" for c in text)
    if len(safe) > 60:
        safe = safe[:48] + "-" + hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return f"{data}+{safe}"
