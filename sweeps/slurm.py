"""Submitting runs to SLURM: as few job arrays as its limit on their size allows."""

from __future__ import annotations

import io
import os
import shlex
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import submitit
from rich.console import Console

from metamixer.config import ConfigError

from . import scheduler, snapshot
from .payload import Payload, signal_delay
from .profiles import Profile
from .submissions import Submission, jobs_folder, record

# USR2 ends a process that has no handler yet; blocked, it waits until the payload has one, seconds of imports later
BLOCK = "import os,signal,sys; signal.pthread_sigmask(signal.SIG_BLOCK,{signal.SIGUSR2}); "
BLOCK += "os.execv(sys.executable,[sys.executable,*sys.argv[1:]])"

# the address by which SLURM itself reaches the first node, whose name need not resolve
FIND_FIRST = "MASTER_ADDR=$(scontrol show node $SLURMD_NODENAME | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')"
FIND_FIRST += '; [ -z "$MASTER_ADDR" ] || export MASTER_ADDR'


def submit(root: Path, hashes: Sequence[str], profile: Profile) -> bool:
    """Submit runs, whose folders exist, as arrays, and say so; the launch lock is held.

    The arrays share the profile's jobs at a time. Where sbatch fails, nothing after it is tried; a busy controller may
    have taken these jobs all the same, which their names tell the next launch.

    Returns whether SLURM took all of them.
    """
    console = Console(highlight=False, soft_wrap=True)
    size, code = scheduler.max_array_size() * profile.runs_per_gpu, snapshot.take(root)
    parts = [tuple(hashes[start : start + size]) for start in range(0, len(hashes), size)]
    for number, part in enumerate(parts):
        at_once = max(1, profile.parallel // len(parts) + (number < profile.parallel % len(parts)))
        id = f"mm-{uuid.uuid4().hex[:8]}"
        submission = Submission(id=id, time=time.time(), snapshot=code, profile=profile, hashes=part)
        record(root, submission)
        try:
            job = _sbatch(root, submission, at_once)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as failure:
            error = " ".join(str(failure).split()).split("sbatch: error: ")[-1]  # its own words, without submitit's
            line = f"sbatch: {error}; the same command submits the rest"
            console.print(line, style="red", markup=False)
            return False
        record(root, submission.model_copy(update={"job": job}))
        console.print(f"job {job}: {len(part)} runs")
    if dropped := sorted(key for key in os.environ if key.startswith("SBATCH_")):
        console.print(f"{', '.join(dropped)}: not used; a profile's `options` take any option of sbatch")
    return True


def _sbatch(root: Path, submission: Submission, parallel: int) -> str:
    profile, folder = submission.profile, jobs_folder(root) / submission.id
    code = (root / "snapshots" / submission.snapshot).resolve()
    python = " ".join(map(shlex.quote, (sys.executable, "-c", BLOCK)))
    try:
        executor = submitit.SlurmExecutor(folder=folder.resolve(), python=python)
    except RuntimeError:
        raise ConfigError("no srun on this machine: --cluster slurm needs SLURM's commands") from None
    optional: dict[str, Any] = {
        key: getattr(profile, key) for key in ("partition", "account", "qos", "constraint") if getattr(profile, key)
    }
    if profile.memory_gb:
        optional["mem"] = f"{round(profile.memory_gb * 1024)}MB"
    if profile.gpus_per_node and not {"gres", "gpus-per-node"} & profile.options.keys():
        optional["gpus_per_node"] = profile.gpus_per_node
    executor.update_parameters(
        job_name=submission.id,
        time=profile.minutes,
        nodes=profile.nodes,
        ntasks_per_node=profile.processes // profile.nodes * profile.runs_per_gpu,
        cpus_per_task=profile.cpus_per_task,
        signal_delay_s=signal_delay(profile.minutes),
        array_parallelism=parallel,
        stderr_to_stdout=True,
        srun_args=[
            # a process that dies takes those of the same run with it, which would wait for it
            f"--kill-on-bad-exit={int(profile.runs_per_gpu == 1)}",
            f"--cpus-per-task={profile.cpus_per_task}",  # srun of SLURM 22.05 does not take it from the job
        ],
        # requeue, whatever the cluster's default: after a lost node the job starts again
        additional_parameters={**profile.options, "requeue": True},
        setup=[
            "export METAMIXER_JOB_START=$(date +%s)",
            # those of a launch from inside another distributed run
            "unset RANK WORLD_SIZE LOCAL_RANK MASTER_PORT MASTER_ADDR",
            *([FIND_FIRST] if profile.nodes > 1 else []),
            "export OMP_NUM_THREADS=1",  # training sets the run's own threads; the other cores load images
            *(f"export {key}={shlex.quote(value)}" for key, value in profile.environment.items()),
            *profile.setup,
            # last: the code is the snapshot's, not that of the current folder or an editable installation
            f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        ],
        **optional,
    )
    payloads = [Payload(str(root.resolve()), runs, submission.id) for runs in submission.jobs]
    # submitit also prints the error that it raises; what is submitted inside `batch` becomes one array
    with _outside_any_job(), redirect_stderr(io.StringIO()), executor.batch():
        jobs = [executor.submit(payload) for payload in payloads]
    return str(jobs[0].job_id).split("_")[0]


@contextmanager
def _outside_any_job() -> Iterator[None]:
    """Where a launch is itself part of a job, that job's variables must not reach the new one."""
    conf = os.environ.get("SLURM_CONF")
    with submitit.helpers.clean_env():
        if conf is not None:
            os.environ["SLURM_CONF"] = conf
        yield
