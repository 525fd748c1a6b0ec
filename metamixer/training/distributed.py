"""Several processes that train one run: who they are, and what they tell each other.

The environment of torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) or of a SLURM job step
(SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_NODELIST) says so; without one, a process is alone.
Tensors on GPUs go through NCCL, all else through gloo.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from ..config import ConfigError
from .surroundings import SurroundingsError


class ProcessLost(SurroundingsError):
    """Another process of the run is gone; the run goes on from its checkpoint when it is launched again."""


# for slow starts of a node, not for steps: a process that dies closes its connections, which the others see at once
TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """The processes of a run, this one among them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the run's folder."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """Whether each flag is up in any process; all of them get the same answer."""
        if self.size == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        distributed.all_reduce(raised, distributed.ReduceOp.MAX)
        return [bool(flag) for flag in raised]

    def broadcast(self, value: Any = None) -> Any:
        """The value of the first process, in every process."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the processes; the tensor given is kept."""
        if self.size == 1:
            return tensor
        summed = tensor.clone()
        distributed.all_reduce(summed)
        return summed


ALONE = World()


def world_of_environment(environment: dict[str, str] | os._Environ[str] = os.environ) -> World:
    """The processes that torchrun or srun started; one alone if neither did.

    Raises ConfigError: a number of processes without this one's rank.
    """
    # SLURM_NTASKS will not do: in a batch script, which runs once, it counts the tasks that srun would start
    for size, rank, local_rank in (
        ("WORLD_SIZE", "RANK", "LOCAL_RANK"),
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
    ):
        if size in environment:
            if rank not in environment:
                raise ConfigError(f"{size} is set in the environment, but {rank} is not")
            return World(int(environment[rank]), int(environment[size]), int(environment.get(local_rank, 0)))
    return ALONE


def rendezvous(environment: dict[str, str] | os._Environ[str]) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT as they are, else from the SLURM step's first node and the job's number."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "localhost"
    job = environment.get("SLURM_JOB_ID", "0")
    return {
        "MASTER_ADDR": environment.get("MASTER_ADDR", first_node(nodes)),
        "MASTER_PORT": environment.get("MASTER_PORT", str(20000 + int(job) % 20000)),
    }


def first_node(nodes: str) -> str:
    """The first of a SLURM node list: `gpu[003-007,9],login` gives `gpu003`."""
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


@contextmanager
def joined(device: str, threads: int | None = None) -> Iterator[tuple[World, torch.device]]:
    """Be one of the environment's processes; gives them and this one's device.

    Args:
        device: a torch device, or `auto` for a GPU where there is one; each process takes a GPU of its own.
        threads: of this process on a CPU meanwhile; sums take another order with another number.

    Raises ConfigError: the others can't be reached, or there are fewer GPUs than processes.
    """
    world = world_of_environment()
    own = _own_device(device, world)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        if world.size == 1:
            yield world, own
        else:
            with _group(world, own):
                yield world, own
    finally:
        torch.set_num_threads(before)


@contextmanager
def _group(world: World, own: torch.device) -> Iterator[None]:
    if own.type == "cuda":
        torch.cuda.set_device(own)
    os.environ.update(rendezvous(os.environ))
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=TIMEOUT)
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConfigError(
            f"process {world.rank} of {world.size} does not reach the others at {where} ({str(error)[:120]!r})"
        ) from None
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _own_device(name: str, world: World) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        count = torch.cuda.device_count() if device.type == "cuda" else 0
        if world.size > 1 and count > 1:  # a scheduler may show each process its own GPU alone
            if world.local_rank >= count:
                raise ConfigError(f"process {world.local_rank} here has no GPU: there are {count}, start as many")
            device = torch.device("cuda", world.local_rank)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = (str(error).splitlines() or [""])[0].split(". ")[0]
        # of an unknown name torch lists all devices that it was ever written for
        why = "" if reason.startswith("Expected one of") else f": {reason}"
        kind = torch.accelerator.current_accelerator()
        own = [f"{kind.type}:{number}" for number in range(torch.accelerator.device_count())] if kind else []
        there = ", ".join(["auto", "cpu", *own])
        raise SurroundingsError(f"device {name!r} can't be used here{why}; there are {there}") from None
    return device


def lost_another(error: BaseException, world: World) -> bool:
    """Whether an error says that another process of the run is gone."""
    if world.size == 1:
        return False
    signs = ("Connection closed", "Connection reset", "Broken pipe", "gloo", "NCCL", "Timed out")
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )
