"""What is each ingredient of FFNet's recipe worth?

The full recipe with one ingredient left out at a time. On ImageNet that is FFNet-3 distilled, the one run that has
them all (8 GPUs); on Fashion-MNIST a small network with layer scale and the recipe scaled down, 7 epochs of it.
There the teacher is the run of `launch.py train small_teacher`, unless `--set recipe.distillation.teacher=FOLDER`
names another one.

    python launch.py plan recipe_ingredients --profile imagenet
    python launch.py train small_teacher                                # 25 minutes of one core
    python launch.py run recipe_ingredients --data fashion-mnist        # 33 runs, about 4 minutes of one core each

Measured on Fashion-MNIST: the full recipe 75.58 %, without distillation −2.73 points [−5.06, −0.39], with colour jitter
in place of RandAugment +1.90 [+0.30, +3.51]; both are hints, and the others are inside the noise.
"""

from functools import partial
from pathlib import Path
from typing import Any

from metamixer import override
from metamixer.recipes import named_run
from metamixer.training.run_config import RunConfig
from sweeps import Grid, Variant

# a fifth of what `small_distilled` itself takes, and an average that forgets its start within it
SHORT = {"recipe.epochs": 6, "recipe.cooldown_epochs": 1, "recipe.ema_decay": 0.97}


def small(runs: Path, overrides: dict[str, Any]) -> RunConfig:
    """The distilled small run, which needs its teacher, with every ingredient that a variant leaves out."""
    return override(
        named_run("small_distilled", overrides, runs),
        {"model.layer_scale": 1e-6, "recipe.drop_path_rate": 0.1, **SHORT, **overrides},
    )


def GRID(runs: Path) -> Grid:
    """The grid, whose small teacher is a run in `runs`."""
    return Grid(
        bases={"imagenet": named_run("ffnet_3_distilled"), "fashion-mnist": partial(small, runs)},
        base="full",
        variants={
            "full": Variant(),
            "no_mixup": Variant(changes={"recipe.mixup_alpha": 0.0}),
            "no_cutmix": Variant(changes={"recipe.cutmix_alpha": 0.0}),
            "no_rand_augment": Variant(changes={"recipe.rand_augment": None}),
            "no_erasing": Variant(changes={"recipe.erase_prob": 0.0}),
            "no_smoothing": Variant(changes={"recipe.label_smoothing": 0.0}),
            "no_ema": Variant(changes={"recipe.ema_decay": None}),
            "no_drop_path": Variant(changes={"recipe.drop_path_rate": 0.0}),
            "no_distillation": Variant(changes={"recipe.distillation": None}),
            "no_warmup": Variant(changes={"recipe.warmup_epochs": 0}),
            "no_layer_scale": Variant(changes={"model.layer_scale": None}),
        },
    )
