"""What an image costs before it reaches the network: CPU time on one core, by the recipe of ffnet_1.

    python benchmarks/input_pipeline.py             # a minute

JPEGs are generated at 500×400 px, about ImageNet's mean size, and go through a data worker's whole work at 256 px.
Small images are Fashion-MNIST's, decoded before.
CPU time, not wall time, so that other processes on the machine count little.
"""

import os
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from PIL import Image

from metamixer.recipes import named_run
from metamixer.training.data import Data
from metamixer.training.datasets import read_image

IMAGES, ROUNDS = 64, 3


def write_jpegs(root: Path) -> float:
    """Two classes of smooth noise; returns the mean size in KB."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for c in range(2):
            (root / split / f"class{c}").mkdir(parents=True)
            for i in range(IMAGES // 2):
                smooth = Image.fromarray(rng.integers(0, 256, (48, 60, 3), dtype=np.uint8)).resize((500, 400))
                noisy = np.asarray(smooth) + rng.normal(0, 8, (400, 500, 3))
                picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
                picture.save(root / split / f"class{c}" / f"{i}.jpeg", quality=90)
    return float(np.mean([path.stat().st_size for path in root.rglob("*.jpeg")])) / 1024


def cost(name: str, action) -> None:
    """CPU milliseconds an image, the range over rounds; `action` takes the epoch and handles IMAGES images."""
    action(0)
    spent = []
    for epoch in range(1, ROUNDS + 1):
        started = time.process_time()
        action(epoch)
        spent.append(1000 * (time.process_time() - started) / IMAGES)
    low, high = min(spent), max(spent)
    print(f"{name:48} {low:6.3f} - {high:6.3f} ms   {1000 / high:6.0f} - {1000 / low:6.0f} images/s a core")


def training(data: Data):
    """Makes the first images of an epoch."""
    epoch_samples = data.steps * data.recipe.batch_size
    return lambda epoch: data.task.samples(0, "train", epoch * epoch_samples + torch.arange(IMAGES))


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        size = write_jpegs(Path(root))
        run = named_run("ffnet_1", {"data.root": root, "data.num_classes": 2, "recipe.batch_size": IMAGES,
                                    "recipe.micro_batch": IMAGES})  # fmt: skip
        data = Data(run.data, run.recipe)
        print(f"JPEGs of 500×400 px, {size:.0f} KB")
        cost("decoded", lambda _: [read_image(data.task.source("train"), i, 3) for i in range(IMAGES)])
        cost("for training, 256 px", training(data))
        cost("for evaluation, 256 px", lambda _: data.task.samples(0, "test", torch.arange(IMAGES)))
    small = named_run("small")
    print("images of 28 px in memory")
    cost("for training", training(Data(small.data, small.recipe)))


if __name__ == "__main__":
    main()
