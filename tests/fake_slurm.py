"""SLURM's commands as small scripts that misbehave on request, for what a real one can't be made to do.

`state.json` in their folder holds how many arrays exist and what the commands are told to do.
"""

import json
import os
import sys
from pathlib import Path

COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "srun")


def install(folder: Path, **state) -> Path:
    """Put the commands into `folder`, for PATH.

    Keys of the state: max_array_size; refuse: which calls of sbatch fail, from 1; mute: commands that never
    answer; broken: commands that fail; unsaid: calls of sbatch that take the job but end with an error;
    jobs: state by job number, where it is not PENDING; reason: why they wait; ended: rows of sacct, which else fails.
    """
    folder.mkdir(parents=True)
    for name in COMMANDS:
        script = folder / name
        script.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
                          f"from fake_slurm import main\nmain({name!r}, {str(folder)!r})\n")  # fmt: skip
        script.chmod(0o755)
    change(folder, **state)
    return folder


def change(folder: Path, **state) -> None:
    path = folder / "state.json"
    before = json.loads(path.read_text()) if path.exists() else {"arrays": [], "calls": 0}
    aside = folder / f"state.{os.getpid()}"
    aside.write_text(json.dumps({**before, **state}))
    aside.replace(path)  # several commands read it at any time


def read(folder: Path) -> dict:
    return json.loads((folder / "state.json").read_text())


def main(name: str, folder: str) -> None:
    state = read(Path(folder))
    with (Path(folder) / "calls.log").open("a") as file:
        file.write(name + "\n")
    if name in state.get("mute", ()):
        import time

        time.sleep(600)
    if name in state.get("broken", ()):
        sys.exit(f"{name}: error: Unable to contact slurm controller")
    globals()[name](state, Path(folder), sys.argv[1:])


def sbatch(state: dict, folder: Path, arguments: list[str]) -> None:
    lines = Path(arguments[0]).read_text().splitlines()
    options = dict(line[len("#SBATCH --") :].partition("=")[::2] for line in lines if line.startswith("#SBATCH --"))
    call = state["calls"] + 1
    change(folder, calls=call)
    if call in state.get("refuse", ()):
        sys.exit("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy")
    size = int(options["array"].split("%")[0].split("-")[1]) + 1 if "array" in options else 1
    assert size <= state.get("max_array_size", 1001)
    step = next(line for line in lines if line.startswith("srun "))
    arrays = [*state["arrays"], {"name": options["job-name"], "size": size, "options": options, "step": step}]
    change(folder, calls=call, arrays=arrays)
    if call in state.get("unsaid", ()):
        sys.exit("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    print(f"Submitted batch job {len(arrays)}")


def squeue(state: dict, folder: Path, arguments: list[str]) -> None:
    form = arguments[arguments.index("-o") + 1]
    names = next(a.partition("=")[2] for a in arguments if a.startswith("--name=")).split(",")
    for number, array in enumerate(state["arrays"], start=1):
        if array["name"] not in names:
            continue
        for task in range(array["size"]):
            full = f"{number}_{task}" if array["size"] > 1 else str(number)
            now = state.get("jobs", {}).get(str(number), "PENDING")
            if now:
                print(form.replace("%j", array["name"]).replace("%i", full).replace("%T", now)
                      .replace("%r", state.get("reason", "None")))  # fmt: skip


def sacct(state: dict, folder: Path, arguments: list[str]) -> None:
    if "ended" not in state:
        sys.exit("Slurm accounting storage is disabled")
    for row in state["ended"]:
        print(f"{state['arrays'][int(row.split('_')[0]) - 1]['name']}|{row}")


def scontrol(state: dict, folder: Path, arguments: list[str]) -> None:
    print(f"MaxArraySize            = {state.get('max_array_size', 1001)}")


def scancel(state: dict, folder: Path, arguments: list[str]) -> None:
    change(folder, jobs={**state.get("jobs", {}), **{number.split("_")[0]: "CANCELLED" for number in arguments}})


def srun(state: dict, folder: Path, arguments: list[str]) -> None:
    sys.exit("srun: error: nothing runs here")
