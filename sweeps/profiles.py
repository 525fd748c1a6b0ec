"""Profiles: what a job asks of a cluster, by name, in a small TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from metamixer.config import Config, ConfigError, override, parse

# options of sbatch that come from a profile's fields, or that a launch sets itself
TAKEN = set(
    "partition account qos constraint nodes time mem cpus-per-task ntasks ntasks-per-node array job-name signal "
    "requeue no-requeue output error wrap".split()
)

PROFILES = Path(__file__).resolve().parent.parent / "slurm.toml"


class Profile(Config):
    """What each run asks of SLURM.

    Attributes:
        minutes: time limit of a job. A run that reaches it goes on in a new job, up to `continuations` times.
        gpus_per_node: with several GPUs or nodes a run is trained by one process per GPU (a node without GPUs: one).
        cpus_per_task: cores for each process; beyond the first they load images.
        memory_gb: memory of each node.
        runs_per_gpu: small runs that share the GPU (or, without GPUs, the node) of one job, each in a process of its
            own. The cores are each run's, the memory is that of all together.
        parallel: jobs of one launch that may run at a time.
        setup: shell lines in front of the run, e.g. `module load cuda`.
        environment: variables to set for the run.
        options: any other options of sbatch by their long names, e.g. `gres = "gpu:a100:4"` or `exclude = "n7"`; true
            for an option that takes no value. `gres` and `gpus-per-node` take the place of the GPUs that
            `gpus_per_node` asks for; it still says how many processes there are.
    """

    minutes: int = Field(gt=0)
    continuations: int = Field(default=3, ge=0)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = Field(default=1, gt=0)
    gpus_per_node: int = Field(default=0, ge=0)
    cpus_per_task: int = Field(default=1, gt=0)
    memory_gb: float | None = Field(default=None, gt=0)
    runs_per_gpu: int = Field(default=1, gt=0)
    parallel: int = Field(default=64, gt=0)
    setup: tuple[str, ...] = ()
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = {}
    options: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")], str | int | bool] = {}

    @field_validator("options")
    @classmethod
    def _has_no_field(cls, options: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        if taken := sorted(TAKEN & options.keys()):
            raise ConfigError(f"option {taken[0]!r}: a field of the profile gives it (minutes: time), or the launch")
        return options

    @model_validator(mode="after")
    def _shares_one_gpu(self) -> Profile:
        if self.runs_per_gpu > 1 and self.processes > 1:
            raise ConfigError(
                f"runs_per_gpu {self.runs_per_gpu}: runs can share one GPU of one node, but the profile has "
                f"{self.nodes} × {self.gpus_per_node}: set nodes=1 and gpus_per_node=1"
            )
        return self

    @property
    def processes(self) -> int:
        """Those that train one run together."""
        return self.nodes * max(1, self.gpus_per_node)

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    def worst_hours(self, runs: int = 1) -> float:
        """GPU-hours that so many runs can take: every job up to its time limit."""
        jobs = -(-runs // self.runs_per_gpu)
        return jobs * self.gpus * self.minutes / 60 * (1 + self.continuations)


def load_profile(name: str, file: Path | None = None, changes: dict[str, Any] | None = None) -> Profile:
    """A profile by name, with `changes` on top.

    Args:
        file: a TOML file with a table for each profile; the project's `slurm.toml` if None.

    Raises:
        ConfigError: no such profile, or a key or value that does not fit.
        OSError: the file can't be read.
    """
    file = file or PROFILES
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from None
    if name not in tables:
        raise ConfigError(f"{file}: no profile {name!r}; there are {', '.join(tables)}")
    return override(parse(Profile, tables[name], f"{file}: {name}"), changes or {})
