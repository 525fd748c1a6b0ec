"""One thread a process: tests run two at a time, and sums keep one order."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

SLOWEST = "slurm grid launch notebooks commands search_commands training distributed latency tutorial profile tasks"


def pytest_collection_modifyitems(items):
    """Files that take long come first: a worker takes whole files, and one of these would end alone."""
    order = [f"test_{name}" for name in SLOWEST.split()]
    items.sort(key=lambda item: order.index(item.path.stem) if item.path.stem in order else len(order))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _registries():
    """What a test registers, and the users' files that it loads, are forgotten after it."""
    from metamixer import plugins
    from metamixer.operation import REGISTRY
    from metamixer.tasks.task import TASKS

    registries = [plugins._loaded, TASKS, *REGISTRY.values()]
    before = [dict(registry) for registry in registries]
    yield
    for registry, known in zip(registries, before, strict=True):
        registry.clear()
        registry.update(known)


@pytest.fixture
def grid(tmp_path):
    """A grid's file: two activations, and a run that diverges."""
    from small import write_grid

    return write_grid(tmp_path)
