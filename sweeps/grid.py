"""Grids: a question as a base run, named variants that each change something, and seeds."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field
from rich.progress import track

from metamixer.config import Config, ConfigError, differences, digests_of, override
from metamixer.plugins import load_module, loaded, place
from metamixer.training.run_config import RunConfig

from .iso_cost import check_measure, matched

# a run, the base and a measure → the run with other widths
Scale = Callable[[RunConfig, RunConfig, str], RunConfig]

GRIDS = Path(__file__).resolve().parent.parent / "ablations"


class Variant(Config):
    """What a variant changes, by dotted key (`metamixer.config.override`), on top of the base or of variant `on`.

    Where `settings` are named, it belongs to those of the grid's settings only.
    """

    changes: dict[str, Any] = {}
    on: str | None = None
    settings: tuple[str, ...] | None = None


class Grid(Config):
    """A question as data.

    Attributes:
        bases: the base run for each setting (usually a data set); the first is the default. One that needs another
            run's results may be a function of the launch's overrides, called where the setting is chosen.
        variants: what is compared, in the order of the tables.
        left_out: variants that can't run yet, with the reason; `plan` shows them.
        base: the variant that differences are taken to.
        seeds: every variant runs once with each; equal seeds make a pair.
        match: scale the widths of every variant until it has the base's "macs" or "params" or, with
            "latency:RUNTIME", takes as long as the base on that runtime (`sweeps.iso_cost`).
        lrs: learning rates at which every variant runs besides its recipe's own, so that none is judged by a rate
            that suits another; a table reports the recipe's and the best on validation data.
        modules: files (their paths from the grid's) that register operations of your own.
    """

    # str → RunConfig, or a function that makes one; Any because pydantic would copy and re-validate them
    bases: dict[str, Any]
    variants: dict[str, Variant]
    left_out: dict[str, str] = {}
    base: str
    seeds: tuple[int, ...] = (0, 1, 2)
    match: Annotated[str, AfterValidator(check_measure)] | None = None
    lrs: tuple[Annotated[float, Field(gt=0)], ...] = ()
    modules: tuple[str, ...] = ()

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
        scale: Scale = matched,
    ) -> list[PlannedRun]:
        """Every run of the grid.

        Args:
            data: which of `bases`; the first if None.
            overrides: changes to the base, before those of the variants.
            only: these variants alone.
            match: in place of the grid's own; "none" leaves the widths alone.
            lrs: in place of the grid's own; none if empty.
            scale: what matches a run to the base.

        Raises:
            ConfigError: no such setting or variant, or a variant that does not make a valid run.
        """
        setting = data or next(iter(self.bases))
        if setting not in self.bases:
            raise ConfigError(f"no setting {setting!r}; the grid has {', '.join(self.bases)}")
        unknown = [name for name in only or () if name not in self.variants]
        if unknown and unknown[0] in self.left_out:
            raise ConfigError(f"variant {unknown[0]!r} is left out: {self.left_out[unknown[0]]}")
        if unknown:
            raise ConfigError(f"no variant {unknown[0]!r}; there are {', '.join(self.variants)}")
        all_seeds = list(self.seeds if seeds is None else seeds)
        if any(seed < 0 for seed in all_seeds):
            raise ConfigError(f"seed {min(all_seeds)}: a seed is 0 or more")
        if len(set(all_seeds)) < len(all_seeds):
            twice = next(seed for seed in all_seeds if all_seeds.count(seed) > 1)
            raise ConfigError(f"seed {twice} is given twice: every variant runs once with each seed")
        if "seed" in (overrides or {}):
            raise ConfigError("seed: a grid runs with each of its seeds: give --seeds, or `seeds` in the grid's file")
        for source in self.modules:
            load_module(source)
        base = self.bases[setting]
        base = override(base(overrides or {}) if callable(base) else base, overrides or {})
        measure = None if match == "none" else match or self.match
        resolved: dict[str | None, RunConfig] = {None: base}
        with blaming(self.base):
            reference = self._resolve(self.base, resolved)
        planned = []
        wanted = [
            name
            for name, variant in self.variants.items()
            if (not only or name in only) and (variant.settings is None or setting in variant.settings)
        ]
        # a second or so each
        for name in track(wanted, f"matching {measure}", transient=True, disable=measure is None or len(wanted) < 5):
            variant = self.variants[name]
            with blaming(name):
                config = self._resolve(name, resolved)
                parent = self._resolve(variant.on or self.base, resolved)
                more = tuple(undeclared(parent, config, variant.changes)) if name != self.base else ()
                if measure and name != self.base:
                    config = scale(config, reference, measure)
            for own, lr in self._at_rates(name, config, self.lrs if lrs is None else lrs):
                # the seed is all that a variant's runs don't share: ten thousand are not validated one by one
                for seed, hash in zip(all_seeds, digests_of(own.identity(), "seed", all_seeds), strict=True):
                    run = own.model_copy(update={"seed": seed})
                    planned.append(PlannedRun(name, seed, run, variant, hash, lr, own is config, None, more))
        return planned

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
        try:
            others = [(override(config, {"recipe.lr": lr}), lr) for lr in dict.fromkeys(lrs) if lr != own]
        except ConfigError as error:
            raise ConfigError(f"variant {name!r}: {error}") from None
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
    declared = re.compile("|".join(_declared(json.loads(json.dumps(changes, default=lambda c: c.to_dict())))) or "(?!)")
    lines = []
    for key, (before, after) in found.items():
        parts = key.split(".")
        replaced = any(".".join([*parts[:end], "name"]) in found for end in range(1, len(parts)))
        of_an_operation = parts[0] == "modules"  # the user's file that it is defined in
        named = replaced or of_an_operation or declared.fullmatch(key)
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
            "`launch.py check OPERATION --module FILE` shows which promises it breaks"
        ) from None


@dataclass(frozen=True)
class PlannedRun:
    """One run of a grid."""

    variant: str
    seed: int
    config: RunConfig
    declared: Variant
    hash: str  # `metamixer.digest` of the configuration
    lr: float | None = None  # of a set of learning rates
    fixed: bool = True  # whether `lr` is the recipe's own
    pair: int | None = None  # what tables pair runs by; the seed if None
    undeclared: tuple[str, ...] = ()  # in what else it differs from the variant that it builds on

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}" + (f" at {self.lr:g}" if self.lr is not None else "")


@dataclass(frozen=True)
class LoadedGrid:
    """A grid with its name and the question in its file's docstring."""

    name: str
    question: str
    grid: Grid


def grid_questions() -> dict[str, str]:
    """The grids that ship with the project and their questions; imports none of them."""
    return {path.stem: question_of(path) for path in sorted(GRIDS.glob("*.py")) if path.stem != "__init__"}


def load_grid(name: str, more_modules: Sequence[str] = (), root: Path = Path("runs")) -> LoadedGrid:
    """A grid by the name of its file in `ablations`, or by the path of a file anywhere.

    Args:
        more_modules: absolute paths, loaded first and added to the grid's own, whose relative paths
            are taken from the grid's folder.
        root: the folder of the runs; a grid that builds on other runs is a function of it.

    Raises:
        ConfigError: no such grid, or a file that does not make one; the line says where.
    """
    path = Path(name) if name.endswith(".py") else GRIDS / f"{name}.py"
    if not path.is_file() or path.stem == "__init__":
        raise ConfigError(f"no grid {name!r}; there are {', '.join(grid_questions())}, or give a file's path")
    grid = from_file(path, "GRID", Grid, more_modules, root)
    return LoadedGrid(path.stem, question_of(path), grid)


Q = TypeVar("Q", bound=Config)


def from_file(
    path: Path, variable: str, cls: type[Q], more_modules: Sequence[str] = (), root: Path = Path("runs")
) -> Q:
    """The value of `variable` in a question's file; if it is a function, its result for `root`.

    The file may import other files beside it. Its `modules` are made absolute and joined by `more_modules`.

    Raises:
        ConfigError: the file does not make one; the line says where.
    """
    for source in more_modules:
        load_module(source)  # before the file, which may be made from what is registered
    beside, before = str(path.parent.resolve()), set(sys.modules)
    sys.path.insert(0, beside)
    try:
        found = runpy.run_path(str(path)).get(variable)
        found = found(root) if callable(found) else found
    except Exception as error:
        frames = reversed(traceback.extract_tb(error.__traceback__))
        line = next((f.lineno for f in frames if f.filename == str(path)), "?")
        if isinstance(error, SyntaxError) and error.filename == str(path):
            line = error.lineno or "?"
        raise ConfigError(f"{path}:{line}: {_one_line(error, cls)}") from None
    finally:
        sys.path.remove(beside)
        for name in set(sys.modules) - before:  # another question may have a file of the same name beside it
            if str(Path(getattr(sys.modules[name], "__file__", None) or "/").parent) == beside:
                del sys.modules[name]
    if not isinstance(found, cls):
        raise ConfigError(f"{path}: no {cls.__name__.lower()} in it: assign one to {variable}")
    own = found.modules  # type: ignore[attr-defined]
    modules = (str((path.parent / m).resolve()) for m in (*own, *more_modules))
    return found.model_copy(update={"modules": tuple(modules)})


def question_of(path: Path) -> str:
    """The first paragraph of a file's docstring, in one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "(no docstring)"
    return " ".join(docstring.split("\n\n")[0].split())


def _one_line(error: Exception, cls: type[Config]) -> str:
    from pydantic import ValidationError

    from metamixer.config import explain

    if isinstance(error, ValidationError):
        # the configuration that was being made, if not the whole
        made = {each.__name__: each for each in Config.__subclasses__()}
        return explain(error, made.get(error.title, cls))
    line = " ".join(str(error).split())
    return line if isinstance(error, ValueError) and line else f"{place(error)}{type(error).__name__}: {line}"


def setting_label(data: str, overrides: dict[str, Any]) -> str:
    """Name of a setting with overrides, fit for a file: `digits`, `digits+recipe.epochs=3`."""
    if not overrides:
        return data
    text = ",".join(f"{key}={value}" for key, value in sorted(overrides.items()))
    safe = "".join(c if c.isalnum() or c in "=.,-_" else "_" for c in text)
    if len(safe) > 60:
        safe = safe[:48] + "-" + hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return f"{data}+{safe}"
