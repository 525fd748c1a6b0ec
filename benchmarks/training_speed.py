"""Training speed, end to end: this project against the plain timm road, interleaved.

The network is the small FFNet (widths 32, 64, 128, 256, depths 1, 1, 3, 1, stem stride 2) on 32×32 images of
Fashion-MNIST, with the full recipe: random resized crop, flip, RandAugment, random
erasing, mixup and cutmix, label smoothing, stochastic depth, AdamW and EMA.

    python benchmarks/training_speed.py             # about 8 minutes on 2 cores
    python benchmarks/training_speed.py --overhead  # what augmentation, EMA and logging take of a step, 1 minute
    python benchmarks/training_speed.py --gpu       # FFNet-1 at 256 px, batch 128, bfloat16, on one GPU

plain      NCHW, loop AdamW, per-tensor EMA, timm's data set, transforms and loader over the same images
ours       one process of `metamixer.training`, one thread
grid       as many processes of one thread as cores: what a grid runs at

On a GPU both roads are fed the same images, which lie in its memory already: what is compared is the network's step.
Each road runs alone for `--steps` steps in every round, each in a process of its own; the table gives medians over
rounds and the median of the ratios within a round.
"""

import argparse
import itertools
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


def overhead() -> dict[str, float]:
    """Parts of a step's time, in percent, that are not the network's; logging is what falls to a step of it."""
    import torch

    from metamixer.training.data import Data
    from metamixer.training.folder import RunFolder
    from metamixer.training.train import PROGRESS_SECONDS, Trainer

    run = config()
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(path)
        folder.create(run)
        trainer = Trainer(run, folder, torch.device("cpu"), Data(run.data, run.recipe, run.seed))
        learner = trainer.learner
        batches = itertools.chain.from_iterable(trainer.data.batches(epoch) for epoch in itertools.count())
        learner.train_step(batches)  # fills the optimizer's state

        def median(action) -> float:
            times = []
            for _ in range(20):
                started = time.perf_counter()
                action()
                times.append(1000 * (time.perf_counter() - started))
            return statistics.median(times)

        step = median(lambda: learner.train_step(batches))
        mixing, average = median(lambda: learner._next(batches, 0)), median(lambda: learner.ema.update(learner.model))
        often = median(trainer._report_progress) * step / (1000 * PROGRESS_SECONDS)
        epochs = median(lambda: (folder.append_metrics({"epoch": 1}), trainer._save(0.0))) / trainer.data.steps
    return {
        "augmentation, mixing": 100 * mixing / step,
        "EMA": 100 * average / step,
        "logging, checkpoints": 100 * (often + epochs) / step,
    }


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
        re_prob=recipe.erase_prob,
        re_mode="pixel",
        scale=recipe.crop_scale,
        ratio=recipe.crop_ratio,
        hflip=recipe.flip_prob,
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
    ema = ModelEmaV2(model, decay=recipe.ema_decay)
    mixup = Mixup(recipe.mixup_alpha, recipe.cutmix_alpha, label_smoothing=recipe.label_smoothing, num_classes=10)
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


def gpu_peak() -> float:
    """Multiply-adds per second of one large bfloat16 matrix product: the peak that counts here."""
    import torch

    side, repeats = 8192, 50
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        a @ b
    torch.cuda.synchronize()
    return repeats * side**3 / (time.perf_counter() - started)


def rate(step, wait=lambda: None, steps: int = STEPS) -> float:
    for _ in range(WARM_UP):
        step()
    wait()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return BATCH * steps / (time.perf_counter() - started)


ONE = {function.__name__: function for function in (ours, plain, overhead, gpu_ours, gpu_plain, gpu_peak)}


def one(road: str, threads: int, copies: int = 1) -> list:
    """What each of `copies` processes of a road gives, running together."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "--one", road]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(copies)]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"the road {road!r} failed")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def compare(roads: dict[str, tuple[str, int, int]], count: int) -> dict[str, float]:
    """Print a table of roads, in pairs of a base and its rival; returns the medians of their images per second."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    rounds = [{name: sum(one(*road)) for name, road in roads.items()} for _ in track(range(count), "rounds")]
    names = list(roads)
    table = Table("road", "images/s (median)", "min - max", "ratio to plain at the same threads (median)")
    medians = {}
    for i, name in enumerate(names):
        values = [r[name] for r in rounds]
        base = names[i // 2 * 2]
        ratio = statistics.median(r[name] / r[base] for r in rounds)
        spread = f"{min(values):.0f} - {max(values):.0f}"
        medians[name] = statistics.median(values)
        table.add_row(name, f"{medians[name]:.0f}", spread, f"{ratio:.2f}")
    Console(width=110).print(table)
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", choices=list(ONE), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(ONE[arguments.one]()))
        return
    cores = len(os.sched_getaffinity(0))
    if arguments.overhead:
        rounds = [one("overhead", 1)[0] for _ in range(arguments.rounds)]
        for part in rounds[0]:
            print(f"{part:24}{statistics.median(found[part] for found in rounds):6.2f} % of a step")
        print(f"{'together':24}{statistics.median(sum(found.values()) for found in rounds):6.2f} % of a step")
    elif arguments.gpu:
        import torch

        if not torch.cuda.is_available():
            sys.exit("no GPU here")
        print(torch.cuda.get_device_name())
        medians = compare({"plain": ("gpu_plain", cores, 1), "ours": ("gpu_ours", cores, 1)}, arguments.rounds)
        from metamixer.cost import count

        # a backward pass costs two forward ones
        work = 3 * count(gpu_config().build(), (3, 256, 256)).macs * medians["ours"]
        print(f"ours reaches {work / one('gpu_peak', cores)[0]:.1%} of what a large bfloat16 matrix product does")
    else:
        roads = {
            "plain, 1 thread": ("plain", 1, 1),
            "ours, 1 thread": ("ours", 1, 1),
            f"plain, {cores} threads": ("plain", cores, 1),
            f"grid, {cores} × 1 thread": ("ours", 1, cores),
        }
        compare(roads, arguments.rounds)


if __name__ == "__main__":
    main()
