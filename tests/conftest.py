"""One thread a process: tests run two at a time, and sums keep one order."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def grid(tmp_path):
    """A grid's file: two activations, and a run that diverges."""
    from small import write_grid

    return write_grid(tmp_path)
