"""Training speed, end to end: this project against timm's own train.py, interleaved.

The network is the small FFNet (widths 32, 64, 128, 256, depths 1, 1, 3, 1, stem stride 2) on 32×32 images of
Fashion-MNIST, with the full recipe: random resized crop, flip, RandAugment, random erasing, mixup and cutmix, label
smoothing, stochastic depth, AdamW and EMA.

    python benchmarks/training_speed.py --timm train.py  # 5 minutes on 2 cores
    python benchmarks/training_speed.py                  # this project alone
    python benchmarks/training_speed.py --probe          # steps on a probe, by CPU time, 2 minutes
    python benchmarks/training_speed.py --gpu            # FFNet-1 at 256 px, batch 128, bfloat16, on one GPU

train.py is the script of timm's repository at the installed version's tag; no package of timm holds it.

timm                  its train.py, NCHW
timm, channels-last   the same with --channels-last
ours                  one process of `metamixer.training`, one thread
grid                  as many processes of one thread as cores: what a grid runs at

On a probe the plain road is the same network, samples, optimizer and schedule in a loop of plain PyTorch (NCHW).

On a GPU the plain road (NCHW, loop AdamW, per-tensor EMA) and ours are fed the same images, which lie in its memory
already: what is compared is the network's step. Each road runs alone, in processes of its own, in every round. The
table gives medians over rounds and the median of the ratios within a round.
"""

import argparse
import gzip
import itertools
import json
import os
import re
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS, STEPS, WARM_UP, BATCH = 3, 12, 3, 128
PROBE_STEPS = 300


def config():
    from metamixer import CONFIGS, override
    from metamixer.recipes import FASHION_MNIST, FFNET_1
    from metamixer.training.run_config import RunConfig

    run = RunConfig(model=CONFIGS["ffnet_mini"], data=FASHION_MNIST, recipe=FFNET_1)
    changes = {
        "model.stem_stride": 2,
        "data.image_size": 32,
        "recipe.batch_size": BATCH,
        "recipe.micro_batch": None,
        "recipe.mixup_alpha": 0.8,
        "recipe.precision": "float32",
    }
    return override(run, changes)


def ours() -> float:
    """Images per second of this project's loop, data and EMA included."""
    import torch

    from metamixer.training.data import Data
    from metamixer.training.learner import Learner

    run = config()
    data = Data(run.data, run.recipe, run.seed)
    learner = Learner(run, torch.device("cpu"), data.steps)
    batches = data.batches(0)
    return rate(lambda: learner.train_step(batches))


def probe_config():
    from metamixer.recipes import named_run

    return named_run("recall")


def probe() -> float:
    """Samples per second of CPU time of this project's loop on a probe."""
    import torch

    from metamixer.training.data import Data
    from metamixer.training.learner import Learner

    run = probe_config()
    data = Data(run.data, run.recipe)
    learner = Learner(run, torch.device("cpu"), data.steps)
    batches = itertools.chain.from_iterable(map(data.batches, itertools.count()))
    return rate(
        lambda: learner.train_step(batches), steps=PROBE_STEPS, batch=run.recipe.batch_size, clock=time.process_time
    )


def probe_plain() -> float:
    """The same network, samples, optimizer and schedule in plain PyTorch."""
    import torch
    from torch.optim.lr_scheduler import CosineAnnealingLR

    run = probe_config()
    model, task = run.build().train(), run.data.built
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.recipe.lr, weight_decay=run.recipe.weight_decay)
    schedule = CosineAnnealingLR(optimizer, PROBE_STEPS)
    batch = run.recipe.batch_size
    firsts = itertools.count(0, batch)

    def step() -> None:
        first = next(firsts)
        inputs, answers = task.samples(run.seed, "train", torch.arange(first, first + batch))
        optimizer.zero_grad()
        task.loss(model(inputs), answers).backward()
        optimizer.step()
        schedule.step()

    return rate(step, steps=PROBE_STEPS, batch=batch, clock=time.process_time)


def timm_process(script: str, threads: int, flags: list[str], folder: str) -> float:
    """Images per second of timm's train.py, with the same network, images and recipe; by the clock of its log."""
    run = config()
    recipe, data = run.recipe, run.data
    arguments = {
        "--data-dir": folder, "--dataset": "torch/fashion_mnist", "--model": "small_ffnet", "--num-classes": 10,
        "--input-size": [1, 32, 32], "--in-chans": 1, "--mean": data.mean, "--std": data.std, "--batch-size": BATCH,
        "--opt": "adamw", "--lr": 1e-3, "--weight-decay": recipe.weight_decay, "--drop-path": recipe.drop_path_rate,
        "--scale": recipe.crop_scale, "--ratio": recipe.crop_ratio, "--hflip": recipe.flip_prob,
        "--color-jitter": recipe.color_jitter, "--aa": recipe.rand_augment, "--reprob": recipe.erase_prob,
        "--mixup": recipe.mixup_alpha, "--cutmix": recipe.cutmix_alpha, "--smoothing": recipe.label_smoothing,
        "--train-interpolation": "bicubic", "--model-ema-decay": recipe.ema_decay, "--workers": 0, "--device": "cpu",
        "--log-interval": 1, "--output": folder,
    }  # fmt: skip
    given = [
        str(each)
        for option, value in arguments.items()
        for each in (option, *(value if isinstance(value, tuple | list) else [value]))
    ]
    command = [sys.executable, __file__, "--one", "timm", "--timm", script, *given, "--model-ema", "--no-prefetcher"]
    began: dict[int, float] = {}  # when a step was logged
    with subprocess.Popen(
        [*command, *flags], env=environment(threads), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout
            said = []
            for line in process.stdout:
                said.append(line)
                if found := re.search(r"Train: 0 \[ *(\d+)/", line):
                    began[int(found[1])] = time.perf_counter()
                if WARM_UP + STEPS in began:
                    break
        finally:
            process.kill()
    if WARM_UP + STEPS not in began:
        sys.exit(f"{script} ended early:\n{''.join(said[-20:])}")
    return BATCH * STEPS / (began[WARM_UP + STEPS] - began[WARM_UP])


def run_timm(script: str, arguments: list[str]) -> None:
    """timm's train.py in this process, with the small FFNet among timm's models."""
    from timm.models import register_model

    def small_ffnet(pretrained=False, drop_path_rate=0.0, **others):
        return config().build(drop_path_rate=drop_path_rate)

    register_model(small_ffnet)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def write_images(folder: str) -> None:
    """Fashion-MNIST as torchvision reads it."""
    from metamixer.tasks.fashion import FASHION_MNIST

    raw = Path(folder) / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in FASHION_MNIST.glob("*.gz"):
        with gzip.open(packed) as source, (raw / packed.stem).open("wb") as file:
            shutil.copyfileobj(source, file)


def gpu_config():
    from metamixer import CONFIGS
    from metamixer.config import override
    from metamixer.recipes import FFNET_1, IMAGENET
    from metamixer.training.run_config import RunConfig

    run = RunConfig(model=CONFIGS["ffnet_1"], data=IMAGENET, recipe=FFNET_1)
    return override(run, {"recipe.precision": "bfloat16", "recipe.batch_size": BATCH, "recipe.micro_batch": None})


def gpu_images():
    import torch

    return torch.randn(BATCH, 3, 256, 256, device="cuda"), torch.randint(0, 1000, (BATCH,), device="cuda")


def gpu_ours() -> float:
    """Images per second of this project's step."""
    import torch

    from metamixer.training.learner import Learner

    images, classes = gpu_images()
    images = images.contiguous(memory_format=torch.channels_last)
    learner = Learner(gpu_config(), torch.device("cuda"), 1000)
    batches = ((images.clone(), classes) for _ in itertools.count())  # mixing is in place
    return rate(lambda: learner.train_step(batches), torch.cuda.synchronize, 8 * STEPS)


def gpu_plain() -> float:
    """Images per second of the same network the plain way."""
    import torch
    from timm.data import Mixup
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV2

    recipe = gpu_config().recipe
    images, classes = gpu_images()
    model = gpu_config().build().cuda()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, foreach=False)
    ema = ModelEmaV2(model, decay=recipe.ema_decay)
    mixup = Mixup(recipe.mixup_alpha, recipe.cutmix_alpha, label_smoothing=recipe.label_smoothing, num_classes=1000)
    criterion = SoftTargetCrossEntropy()

    def step() -> None:
        x, y = mixup(images.clone(), classes)
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(x)
        loss = criterion(logits.float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)

    return rate(step, torch.cuda.synchronize, 8 * STEPS)


def rate(step, wait=lambda: None, steps: int = STEPS, batch: int = BATCH, clock=time.perf_counter) -> float:
    for _ in range(WARM_UP):
        step()
    wait()
    started = clock()
    for _ in range(steps):
        step()
    wait()
    return batch * steps / (clock() - started)


ONE = {function.__name__: function for function in (ours, probe, probe_plain, gpu_ours, gpu_plain)}


def environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "1000", "PYTHONWARNINGS": "ignore"}


def one(road: str, threads: int, copies: int = 1) -> list:
    """What each of `copies` processes of a road gives, running together."""
    command = [sys.executable, __file__, "--one", road]
    processes = [
        subprocess.Popen(command, env=environment(threads), stdout=subprocess.PIPE, text=True) for _ in range(copies)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"the road {road!r} failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def compare(roads, count: int) -> None:
    """Print a table of roads, by name."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    rounds = [{name: road() for name, road in roads.items()} for _ in track(range(count), "rounds")]
    last = list(roads)[-1]
    table = Table("road", "samples/s (median)", "min - max", f"{last}: times this road (median)")
    for name in roads:
        values = [r[name] for r in rounds]
        ratio = statistics.median(r[last] / r[name] for r in rounds)
        table.add_row(
            name, f"{statistics.median(values):.0f}", f"{min(values):.0f} - {max(values):.0f}", f"{ratio:.2f}"
        )
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--one", choices=[*ONE, "timm"], help=argparse.SUPPRESS)
    parser.add_argument("--timm", metavar="TRAIN_PY", help="the script of timm's repository")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    arguments, others = parser.parse_known_args()
    if arguments.one == "timm":
        run_timm(arguments.timm, others)
    elif arguments.one:
        print(json.dumps(ONE[arguments.one]()))
    elif arguments.probe:
        compare({road: lambda road=road: one(road, 1)[0] for road in ("probe_plain", "probe")}, arguments.rounds)
    elif arguments.gpu:
        import torch

        if not torch.cuda.is_available():
            sys.exit("no GPU here")
        print(torch.cuda.get_device_name())
        roads = {"plain": lambda: one("gpu_plain", 1)[0], "ours": lambda: one("gpu_ours", 1)[0]}
        compare(roads, arguments.rounds)
    else:
        cores = len(os.sched_getaffinity(0))
        with tempfile.TemporaryDirectory() as folder:
            if arguments.timm:
                write_images(folder)
            for threads, name in ((1, "ours, 1 thread"), (cores, f"grid, {cores} × 1 thread")):
                roads = {}
                for road, flags in {"timm": [], "timm, channels-last": ["--channels-last"]}.items():
                    if arguments.timm:
                        roads[road] = lambda flags=flags, n=threads: timm_process(arguments.timm, n, flags, folder)
                roads[name] = lambda copies=threads: sum(one("ours", 1, copies))
                print(f"{threads} threads" if threads > 1 else "1 thread")
                compare(roads, arguments.rounds)


if __name__ == "__main__":
    main()
