"""What a grid of 10,000 runs costs to plan, follow and collect, and how many calls of sbatch 2,500 runs make.

    python benchmarks/launching_scale.py [--runs 10000] [--json FILE]

The runs are made up: 2,000 variants of a small network's learning rate and activation, five seeds each; nine of
ten are done, a quarter of the others wait in the queue of a stand-in for SLURM (`tests/fake_slurm.py`). Figures are
seconds of a whole `launch.py` command with its output thrown away; `import` is the part
of `plan` that importing torch and timm takes.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SEEDS = 5
GRID = """
'''Which learning rate?'''
import sys
sys.path.insert(0, {tests!r})
from small import RUN
from sweeps import Grid, Variant
KEY = "model.stages.*.token_mixer.activation"
RATES = range({variants} // 2)
GRID = Grid(bases={{"tiny": RUN}}, base="gelu0", seeds=tuple(range({seeds})), variants={{
    f"{{name}}{{i}}": Variant(changes={{KEY: name, "recipe.lr": 1e-3 * (1 + i / 1000)}})
    for i in RATES for name in ("gelu", "relu")}})
"""


def measure(figures: dict[str, float], name: str, *command: object) -> None:
    """Wall and processor seconds of a Python command, the better of two; the second tells on a busy machine."""
    for _ in range(2):
        began, spent = time.perf_counter(), processor()
        subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        for key, value in (("wall", time.perf_counter() - began), ("cpu", processor() - spent)):
            figures[f"{name}_{key}"] = min(value, figures.get(f"{name}_{key}", value))


def processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def finish(folder: Path, index: int) -> None:
    """Give a run a result; no two have the same."""
    top1 = 80 + index * 7919 % 1000 / 100
    scores = {"top1": top1, "top5": 99.0, "loss": 0.5, "images": 10_000}
    result = {"state": "done", "epochs": 3, "evaluated": "test", "weights": "raw", **scores, "raw": scores,
              "parameters": 10_000, "macs": 270_000, "seconds": 60.0, "time": time.time()}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "progress.json").write_text(json.dumps({"state": "done", "epoch": 3, "epochs": 3, "host": "n1"}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    import fake_slurm

    from metamixer.config import SCHEMA_VERSION
    from sweeps import load_grid, make_plan
    from sweeps.cluster import launch_plans
    from sweeps.profiles import Profile

    figures: dict[str, float] = {"runs": arguments.runs}
    with tempfile.TemporaryDirectory() as place:
        grid, runs = Path(place) / "rates.py", Path(place) / "runs"
        grid.write_text(GRID.format(tests=str(ROOT / "tests"), variants=arguments.runs // SEEDS, seeds=SEEDS))
        commands = fake_slurm.install(Path(place) / "bin")
        os.environ["PATH"] = f"{commands}:{os.environ['PATH']}"

        plan = make_plan(load_grid(str(grid)), runs)
        some = [run.variant for run in plan.runs[: 2500 * len(plan.runs) // 10_000]]
        began = time.perf_counter()
        part = make_plan(load_grid(str(grid)), runs, only=list(dict.fromkeys(some)))
        launch_plans([part], Profile(minutes=60), False, None)
        figures["submit_seconds"] = time.perf_counter() - began
        figures["submitted"] = len(some)
        figures["sbatch_calls"] = (commands / "calls.log").read_text().split().count("sbatch")

        for index, run in enumerate(plan.runs):
            (plan.root / run.hash).mkdir(exist_ok=True)
            (plan.root / run.hash / "config.json").write_text(
                json.dumps({"schema": SCHEMA_VERSION, "digest": run.hash, "config": run.config.to_dict()})
            )
            if index % 10:
                finish(plan.root / run.hash, index)
        plan.write_manifest()
        # what plan begins with
        measure(figures, "import", "-c", "import torch, timm")
        measure(figures, "plan", "launch.py", "plan", grid, "--runs", runs)
        measure(figures, "status", "launch.py", "status", "--runs", runs)
        measure(figures, "collect", "launch.py", "collect", "rates", "--runs", runs)
    for name, value in figures.items():
        print(f"{name:16} {value:8.2f}" if isinstance(value, float) else f"{name:16} {value:8}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
