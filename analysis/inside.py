"""What a mixer looks at, and how far: receptive fields, answers and costs of the networks of finished runs.

The only module of the package that builds networks, and so loads torch; `plots.inside` shows what it finds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from metamixer.config import ConfigError
from metamixer.cost import by_layer, count
from metamixer.cost_table import by_slot
from metamixer.networks import Network, find_network
from metamixer.training.checkpoint import LAST, load_weights
from metamixer.training.data import Data

from .frame import each

WEIGHTS = "weights.npz"  # what a pack of `results` keeps of a checkpoint
_STEP = ":step"
SMALLEST_MAP = 7  # a centre needs some map around it


@dataclass(frozen=True)
class Inside:
    """The network of a run, in eval mode, and what its weights are: `trained`, or as they were drawn."""

    name: str
    network: Network
    trained: bool

    @property
    def label(self) -> str:
        """The name, with a word where the weights are not trained."""
        return self.name if self.trained else f"{self.name} (not trained)"

    @property
    def model(self) -> nn.Module:
        return self.network.model


def network(folder: str | Path, name: str = "") -> Inside:
    """The network of a run's folder with its reported weights; where they are not kept, untrained.

    Raises ConfigError: no run there, or weights that do not fit.
    """
    folder = Path(folder)
    name = name or folder.name
    if (folder / LAST).is_file() and (folder / "result.json").is_file():
        return Inside(name, find_network(str(folder), trained=True), True)
    found = find_network(str(folder))
    if not (folder / WEIGHTS).is_file():
        return Inside(name, found, False)
    state = found.model.state_dict()
    with np.load(folder / WEIGHTS) as arrays:
        for key in arrays.files:
            if not key.endswith(_STEP):
                step = arrays[key + _STEP] if key + _STEP in arrays.files else 1
                state[key] = torch.from_numpy((arrays[key] * step).astype(np.float32))
    load_weights(found.model, state, str(folder / WEIGHTS))
    return Inside(name, found, True)


def rounded_weights(folder: str | Path) -> dict[str, np.ndarray]:
    """A finished run's reported weights as small arrays that `network` reads.

    Matrices and kernels are whole multiples of a sixteenth of their standard deviation (or of 1/127 of their largest,
    if that is more), some 6 bits a weight after compression; vectors have half precision.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in find_network(str(folder), trained=True).model.state_dict().items():
        values = tensor.float().numpy()
        if tensor.is_floating_point() and values.ndim > 1:
            step = np.float32(max(values.std() / 16, np.abs(values).max() / 127, 1e-12))
            arrays |= {name: np.round(values / step).astype(np.int8), name + _STEP: np.asarray(step)}
        elif tensor.is_floating_point():
            arrays[name] = values.astype(np.float16)
    return arrays


def networks(runs: pd.DataFrame, variants: Iterable[str] = ()) -> tuple[list[Inside], list[str]]:
    """A network of each variant, or of those named: of a run whose weights are kept, if any, else its first.

    Where learning rates were tried, of a run at the recipe's own if there is one.

    Returns:
        The networks, and one line for each variant that has none, with the reason.
    """
    found, left_out = [], []
    for variant in list(variants) or list(dict.fromkeys(runs["variant"])):
        own = runs[runs["variant"] == variant]
        folders = [Path(folder) for folder in own.loc[own["fixed"] | (not own["fixed"].any()), "folder"]]
        folders = [folder for folder in folders if (folder / "config.json").is_file()]
        kept = [folder for folder in folders if (folder / WEIGHTS).is_file() or (folder / LAST).is_file()]
        try:
            if not folders:
                raise ConfigError("no run of it has begun" if variant in set(runs["variant"]) else "no such variant")
            found.append(network((kept or folders)[0], variant))
        except ValueError as error:
            left_out.append(f"{variant}: {error}")
    return found, left_out


def state_sizes(runs: pd.DataFrame) -> pd.Series:
    """How many numbers of the other tokens each variant's network holds to answer for one more (`metamixer.cost`).

    By variant, named `state_size`; of those that a run has begun of.
    """
    found = {each.name: count(each.model, each.network.input_size).state_size for each in networks(runs)[0]}
    return pd.Series(found, name="state_size", dtype=float)


def summary(networks: list[Inside], left_out: list[str]) -> str:
    """Which networks are looked at, and with what weights: a line each."""
    lines = [
        f"{inside.name}: " + ("trained." if inside.trained else "not trained: its weights are not kept, these are new.")
        for inside in networks
    ]
    return "\n".join([*lines, *(f"Left out, {line}." for line in left_out)]) or "No network to look at."


def images(networks: list[Inside], count: int = 64) -> tuple[Tensor, str]:
    """The first test images of the runs' data set, normalised, (B, C, H, W), and what they are.

    Where the data set is not on this machine they are normal noise, as wide as normalised images.
    """
    if not networks:
        return torch.zeros(0), "no images"
    network = networks[0].network
    assert network.run is not None
    data = network.run.data
    try:
        batches = Data(data, None).evaluation("test")
        found: list[Tensor] = []
        while sum(map(len, found)) < count and (batch := next(batches, None)) is not None:
            found.append(batch[0])
        return torch.cat(found)[:count].contiguous(), f"{count} test images"
    except ConfigError:
        noise = torch.randn(count, *network.input_size, generator=torch.Generator().manual_seed(0))
        return noise, f"{count} images of noise ({data.about} is not on this machine)"


def receptive_field(inside: Inside, batch: Tensor, stage: int | None = None) -> np.ndarray:
    """Effective receptive field of the centre of a stage's map, (H, W), summing to 1.

    The gradient of the centre, summed over its channels, with respect to the image: its magnitude, summed over
    the image's channels and averaged over images. Source: Luo et al., "Understanding the effective receptive field
    in deep convolutional neural networks", arXiv 1701.04128.

    Args:
        batch: (B, C, H, W), normalised.
        stage: from 1; by default the last one whose map is at least 7 wide, else the first.
    """
    x = batch.clone().requires_grad_()
    maps = inside.model.forward_intermediates(x, intermediates_only=True)  # type: ignore[operator]
    wide = [i for i, of_stage in enumerate(maps, 1) if min(of_stage.shape[-2:]) >= SMALLEST_MAP]
    at = maps[(stage or max([1, *wide])) - 1]
    height, width = at.shape[-2:]
    at[:, :, height // 2, width // 2].sum().backward()
    assert x.grad is not None
    field = x.grad.abs().sum(1).mean(0).double().numpy()
    return field / max(field.sum(), np.finfo(float).tiny)


def receptive_fields(networks: list[Inside], batch: Tensor) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Each network's effective receptive field, and the side of the square that holds 90 % of it, by name."""
    fields = {inside.label: receptive_field(inside, batch) for inside in networks}
    return fields, {name: extent(field) for name, field in fields.items()}


def extent(field: np.ndarray, share: float = 0.9) -> int:
    """Side in pixels of the smallest square around the field's heaviest row and column that holds `share` of it."""
    centre = [int(np.searchsorted(np.cumsum(field.sum(1 - axis)), 0.5 * field.sum())) for axis in (0, 1)]
    for reach in range(max(field.shape)):
        top, left = (max(0, at - reach) for at in centre)
        if field[top : centre[0] + reach + 1, left : centre[1] + reach + 1].sum() >= share * field.sum():
            return min(2 * reach + 1, max(field.shape))
    return max(field.shape)


def examples(
    networks: list[Inside], count: int = 4
) -> tuple[dict[str, list[np.ndarray]], dict[str, tuple[float, ...]]]:
    """The first test samples, for tasks whose answers are pictures: `input`, `truth`, and what each network answers.

    Pictures are (H, W, 3) in 0 … 1. The second dict is the task's `legend`: colours by name. Both are empty where
    answers are no pictures, or no network is trained.
    """
    trained = [inside for inside in networks if inside.trained and inside.network.run is not None]
    found: dict[str, list[np.ndarray]] = {}
    if not trained:
        return found, {}
    task = trained[0].network.run.data.built  # type: ignore[union-attr]
    for index in range(min(count, task.count("test") or count)):
        inputs, answers = task.samples(0, "test", torch.tensor([index]))
        shown: dict[str, Tensor] = {}
        for inside in trained:
            with torch.inference_mode():
                drawn = task.pictures(inputs, answers, inside.model(inputs))
            shown |= zip(("input", "truth", inside.name), drawn or (), strict=False)
        for name, picture in shown.items():
            found.setdefault(name, []).append(picture.clamp(0, 1).permute(1, 2, 0).numpy())
    return found, task.legend()


def slot_costs(runs: pd.DataFrame) -> pd.DataFrame:
    """What each part of each variant's folded network costs: `variant`, `part`, `macs`, `parameters`, a row each.

    Variants in the order of the runs, those left out whose network this code can't build; parts as
    `metamixer.cost_table.by_slot` names them.
    """
    rows = []
    for run in each(runs[runs["parameters"].notna()].drop_duplicates("variant")):
        try:
            found = find_network(run.folder)
        except ValueError:
            continue
        costs = by_slot(by_layer(found.model, found.input_size, inplace=True))
        rows += [(run.variant, part, cost.macs, cost.parameters) for part, cost in costs.items()]
    return pd.DataFrame(rows, columns=["variant", "part", "macs", "parameters"])
