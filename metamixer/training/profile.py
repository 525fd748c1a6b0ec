"""Where the time of a training step goes, and the memory."""

from __future__ import annotations

import itertools
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ConfigError
from .data import Batch, Data
from .distributed import joined
from .learner import Learner, on_device
from .run_config import RunConfig
from .samples import Samples, open_data

WARM_UP = 3


@dataclass(frozen=True)
class Profile:
    """Costs of a step of one process.

    Attributes:
        step: median milliseconds of a step whose parts are not timed.
        parts: median milliseconds in a step by part, over its passes; `other` is what is in none.
        images: in a step of this process.
        memory: MiB by what holds it; `peak` is the GPU's, or the whole process's on a CPU.
    """

    step: float
    parts: dict[str, float]
    images: int
    memory: dict[str, float]
    device: torch.device

    @property
    def images_per_second(self) -> float:
        return 1000 * self.images / self.step


def measure(config: RunConfig, steps: int = 20, device: str = "auto", workers: int = 0) -> Profile:
    """Train `steps` steps twice, as they are and with a clock at each part; nothing is written.

    On a GPU the clock waits for the device at each part, so that together the parts may take longer than a step.

    Raises:
        ConfigError: data, weights or configuration can't be used, or `steps` is not positive.
    """
    if steps < 1:
        raise ConfigError(f"steps {steps}: at least one is measured")
    with joined(device, config.threads) as (world, own_device):
        data = open_data(config.data, config.recipe, config.seed, own_device, workers)
        learner = Learner(config, own_device, data.steps, world)
        batches = on_device(_endless(data, world.rank, world.size), own_device)

        def wait() -> None:
            if own_device.type == "cuda":
                torch.cuda.synchronize(own_device)

        def step() -> float:
            started = time.perf_counter()
            learner.train_step(batches)
            wait()
            return 1000 * (time.perf_counter() - started)

        for _ in range(WARM_UP):
            step()
        plain = [step() for _ in range(steps)]
        spent: dict[str, float] = {}

        @contextmanager
        def section(name: str) -> Iterator[None]:
            started = time.perf_counter()
            yield
            wait()
            spent[name] = spent.get(name, 0.0) + 1000 * (time.perf_counter() - started)

        learner.section = section
        timed: list[dict[str, float]] = []
        for _ in range(steps):
            spent.clear()
            total = step()
            timed.append({**spent, "other": total - sum(spent.values())})
        parts = {name: statistics.median(parts[name] for parts in timed) for name in timed[0]}
        images = learner.share * config.recipe.batch_size // config.recipe.passes
        return Profile(statistics.median(plain), parts, images, _memory(learner), own_device)


def _endless(data: Data | Samples, rank: int, processes: int) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from data.batches(epoch, 0, rank, processes)


def _memory(learner: Learner) -> dict[str, float]:
    def size(tensors: Iterable[object]) -> float:
        return sum(t.nbytes for t in tensors if isinstance(t, Tensor)) / 2**20

    parameters = list(learner.model.parameters())
    held = {
        "weights": size(learner.model.state_dict().values()),
        "gradients": size(p.grad for p in parameters),
        "optimizer": size(value for state in learner.optimizer.state.values() for value in state.values()),
        "average": size(learner.ema.module.state_dict().values()) if learner.ema is not None else 0.0,
        "teacher": size(learner.teacher.model.state_dict().values()) if learner.teacher is not None else 0.0,
    }
    if learner.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(learner.device) / 2**20
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, else KiB
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {**{name: mib for name, mib in held.items() if mib}, "peak": peak}
