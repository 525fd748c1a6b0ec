"""What an image costs before it reaches the network: CPU time on one core, by the recipe of ffnet_1.

    python benchmarks/input_pipeline.py             # two minutes

JPEGs are generated at 500×400 px, about ImageNet's mean size, and go through a data worker's whole work at 256 px.
Small images are Fashion-MNIST's at 32 px: augmented a batch at a time as a run does, and one by one by timm. Last come
whole training steps on one thread with either, in turns: what the batched path buys a run.
CPU time, not wall time, so that other processes on the machine count little.
"""

import itertools
import os
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from PIL import Image

from metamixer import CONFIGS, override
from metamixer.recipes import DIGITS, FASHION_MNIST, SMALL_DIGITS, named_run
from metamixer.training.data import Data, _Stream, _train_transform
from metamixer.training.datasets import read_image
from metamixer.training.learner import Learner
from metamixer.training.run_config import RunConfig

IMAGES, ROUNDS, STEPS = 64, 3, 31


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


def timms_batches(data: Data):
    """The batches of an endless epoch, each image augmented by timm's transforms."""
    transform = _train_transform(data.config, data.recipe)
    for epoch in itertools.count():
        for chunk in data._chunks(epoch, 0, 0, 1):
            pictures = [Image.fromarray(image.numpy()) for image in data.train.images[chunk, 0]]
            images = torch.stack([transform(picture) for picture in pictures])
            yield images.contiguous(memory_format=torch.channels_last), data.train.labels[chunk]


def end_to_end(name: str, run: RunConfig) -> None:
    """Medians of the CPU time of a training step with batches of either kind, in turns."""
    data = Data(run.data, run.recipe)
    learner = Learner(run, torch.device("cpu"), data.steps)
    ours = itertools.chain.from_iterable(data.batches(epoch) for epoch in itertools.count())
    roads = (ours, timms_batches(data))
    spent = np.empty((STEPS, 2))
    for step in range(-2, STEPS):  # the first two warm up
        for road, batches in enumerate(roads):
            started = time.process_time()
            learner.train_step(batches)
            spent[step, road] = 1000 * (time.process_time() - started)
    batched, single = np.median(spent, 0)
    print(f"{name:48} {batched:6.1f} ms   by timm's transforms {single:6.1f} ms   ratio {single / batched:.2f}")


def main() -> None:
    torch.set_num_threads(1)
    indices = np.arange(IMAGES)
    with tempfile.TemporaryDirectory() as root:
        size = write_jpegs(Path(root))
        run = named_run("ffnet_1", {"data.root": root, "data.num_classes": 2, "recipe.batch_size": IMAGES,
                                    "recipe.micro_batch": IMAGES})  # fmt: skip
        data = Data(run.data, run.recipe)
        stream = _Stream(data)
        print(f"JPEGs of 500×400 px, {size:.0f} KB")
        cost("decoded", lambda _: [read_image(data.train, i, 3) for i in range(IMAGES)])
        cost("for training, 256 px", lambda epoch: stream[("train", epoch, indices)])
        cost("for evaluation, 256 px", lambda epoch: stream[("test", epoch, indices)])
    small = override(run, {"data": FASHION_MNIST, "data.image_size": 32})
    data = Data(small.data, small.recipe)
    transform = _train_transform(small.data, small.recipe)
    pictures = [Image.fromarray(image.numpy()) for image in data.train.images[:IMAGES, 0]]
    print("images of 32 px in memory")
    cost("for training, a batch at a time", lambda epoch: data.augment(data.train.images[:IMAGES], epoch, indices))
    cost("the same by timm's transforms, one by one", lambda _: torch.stack([transform(p) for p in pictures]))
    print("whole training steps")
    end_to_end("Fashion-MNIST, ffnet_1's recipe (small)", named_run("small"))
    short = override(named_run("small"), {"recipe": SMALL_DIGITS, "data": DIGITS, "model": CONFIGS["ffnet_mini"]})
    end_to_end("digits, a grid's short recipe", short)


if __name__ == "__main__":
    main()
