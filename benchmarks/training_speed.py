"""Training speed on a CPU, end to end: this project against the plain timm road, interleaved.

The network is the small FFNet (widths 32, 64, 128, 256, depths 1, 1, 3, 1, stem stride 2) on 32×32 images of
Fashion-MNIST, with the full recipe: random resized crop, flip, RandAugment, random
erasing, mixup and cutmix, label smoothing, stochastic depth, AdamW and EMA.

    python benchmarks/training_speed.py             # about 8 minutes on 2 cores

plain      NCHW, loop AdamW, per-tensor EMA, timm's data set, transforms and loader over the same images
ours       one process of `metamixer.training`, one thread
grid       as many processes of one thread as cores: what a grid runs at

Each road runs alone for `--steps` steps in every round, each in a process of its own; the table gives medians over
rounds and the median of the ratios within a round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS, STEPS, WARM_UP, BATCH = 5, 12, 3, 128


def config():
    from metamixer import CONFIGS, override
    from metamixer.recipes import FASHION_MNIST, FFNET_1
    from metamixer.training.config import RunConfig

    run = RunConfig(model=CONFIGS["ffnet_mini"], data=FASHION_MNIST, recipe=FFNET_1)
    changes = {"model.stem_stride": 2, "data.image_size": 32, "recipe.batch_size": BATCH, "recipe.mixup": 0.8}
    return override(run, changes)


def ours() -> float:
    """Images per second of this project's loop, data and EMA included."""
    import torch

    from metamixer.training.folder import RunFolder
    from metamixer.training.train import Trainer

    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(path)
        run = config()
        folder.create(run)
        trainer = Trainer(run, folder, torch.device("cpu"), 0)
        batches = trainer.data.batches(0)
        return rate(lambda: trainer._train_step(*next(batches)))


def plain() -> float:
    """Images per second of the same recipe the plain way: timm's parts as its train script puts them together."""
    import numpy as np
    import torch
    from PIL import Image
    from timm.data import Mixup, create_loader
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.utils import ModelEmaV2

    from metamixer.training.data import Data

    run = config()
    recipe = run.recipe
    images = Data(run.data, recipe, 0).train

    class Pictures(torch.utils.data.Dataset):
        transform = None

        def __len__(self):
            return len(images)

        def __getitem__(self, index):
            picture = Image.fromarray(np.asarray(images.images[index, 0]))
            return self.transform(picture), int(images.labels[index])

    loader = create_loader(
        Pictures(),
        (1, 32, 32),
        BATCH,
        is_training=True,
        use_prefetcher=False,
        re_prob=recipe.erase,
        re_mode="pixel",
        scale=recipe.crop_scale,
        ratio=recipe.crop_ratio,
        hflip=recipe.flip,
        auto_augment=recipe.rand_augment,
        interpolation="bicubic",
        mean=run.data.mean,
        std=run.data.std,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
    )
    model = run.build()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, foreach=False)
    ema = ModelEmaV2(model, decay=recipe.ema)
    mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=10)
    criterion = SoftTargetCrossEntropy()
    batches = iter(loader)

    def step() -> None:
        x, y = mixup(*next(batches))
        loss = criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model)

    return rate(step)


def rate(step) -> float:
    for _ in range(WARM_UP):
        step()
    started = time.perf_counter()
    for _ in range(STEPS):
        step()
    return BATCH * STEPS / (time.perf_counter() - started)


def measure(road: str, threads: int, copies: int = 1) -> float:
    """Images per second of `copies` processes of a road together."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "--one", road]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(copies)]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"the road {road!r} failed")
    return sum(json.loads(output.splitlines()[-1]) for output in outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", choices=["ours", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps({"ours": ours, "plain": plain}[arguments.one]()))
        return
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    cores = len(os.sched_getaffinity(0))
    roads = {
        "plain, 1 thread": ("plain", 1, 1),
        "ours, 1 thread": ("ours", 1, 1),
        f"plain, {cores} threads": ("plain", cores, 1),
        f"grid, {cores} × 1 thread": ("ours", 1, cores),
    }
    rounds = [{name: measure(*road) for name, road in roads.items()} for _ in track(range(arguments.rounds), "rounds")]
    names = list(roads)
    table = Table("road", "images/s (median)", "min - max", "ratio to plain at the same threads (median)")
    for i, name in enumerate(names):
        values = [r[name] for r in rounds]
        base = names[i // 2 * 2]
        ratio = statistics.median(r[name] / r[base] for r in rounds)
        spread = f"{min(values):.0f} - {max(values):.0f}"
        table.add_row(name, f"{statistics.median(values):.0f}", spread, f"{ratio:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
