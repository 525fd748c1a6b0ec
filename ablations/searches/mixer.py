"""Which mixer, at which width, buys accuracy for its multiply-adds?

All four slots of the token mixer, the kernels of those that have one, the channel mixer's kernel, the widths and the
learning rate, on a small network; sought are top-1 on validation images and multiply-adds. FFNet's published mixer and
attention are tried first.

    python launch.py search mixer --data fashion-mnist
    python launch.py confirm mixer --data fashion-mnist    # a grid of the best, with other seeds and on test images
"""

from typing import Any

from optuna.trial import Trial

from metamixer.config import override
from metamixer.ffnet import ffnet
from metamixer.recipes import DIGITS, FASHION_MNIST, SMALL, SMALL_DIGITS
from metamixer.training.run_config import RunConfig
from sweeps.search import Search

VALUE_OF = {"scaled_dot": "matmul", "neighbourhood": "windowed_sum"}  # what fits coefficients of pairs of tokens


def depthwise(trial: Trial, slot: str) -> dict[str, Any]:
    """A plain kernel, or FFNet's: a small branch beside a large one."""
    kernel = trial.suggest_categorical(f"{slot}[depthwise].kernel", ["3", "5", "7", "7+3"])
    branch = {"small_kernel": 3} if kernel == "7+3" else {}
    return {"name": "depthwise", "kernel_size": int(kernel[0]), "norm": True, **branch}


def mixer(trial: Trial) -> dict[str, Any]:
    query: Any = trial.suggest_categorical("query", ["identity", "linear"])
    query = {"name": "linear", "norm": True} if query == "linear" else query
    name = trial.suggest_categorical("query_key", ["depthwise", "linear", *VALUE_OF])
    if name in VALUE_OF:
        key: dict[str, Any] = {"name": name, "head_dim": 8}
        if name == "neighbourhood":
            key["kernel_size"] = trial.suggest_categorical("query_key[neighbourhood].kernel", [3, 5])
        activation = trial.suggest_categorical("activation[pairs]", ["gelu", "relu", "identity", "softmax"])
        value: Any = VALUE_OF[name]
    else:
        wide = {"name": "linear", "expansion": 1.0, "norm": True}
        key = depthwise(trial, "query_key") if name == "depthwise" else wide
        activation = trial.suggest_categorical("activation[map]", ["gelu", "relu", "identity"])
        value = trial.suggest_categorical("coefficient_value[map]", ["depthwise", "linear", "hadamard"])
        value = depthwise(trial, "coefficient_value") if value == "depthwise" else value
    return {"query": query, "query_key": key, "activation": activation, "coefficient_value": value}


def propose(trial: Trial) -> dict[str, Any]:
    width = trial.suggest_categorical("width", [8, 16, 24])
    return {
        "model.stages.*.token_mixer": mixer(trial),
        "model.stages.*.channel_mixer.query.kernel_size": trial.suggest_categorical("channel_kernel", [3, 5, 7]),
        **{f"model.stages.{stage}.width": width * 2**stage for stage in range(4)},
        "recipe.lr": trial.suggest_float("lr", 1e-3, 1e-2, log=True),
    }


small = ffnet((1, 1, 2, 1), (16, 32, 64, 128), channel_kernels=(3, 3, 3, 3), stem_width=16, stem_stride=1)
half = override(small, {"stem_stride": 2})

# trials are many, so they are short: too short for an average of the weights
SHORT = {"model.norm": "batch", "recipe.ema_decay": None, "recipe.epochs": 5}
IMAGES = {"data.train_samples": 5000}

SIZE = {"query": "linear", "width": 16, "channel_kernel": 3, "lr": 3e-3}
FFNET = {
    "query_key": "depthwise",
    "query_key[depthwise].kernel": "7+3",
    "activation[map]": "gelu",
    "coefficient_value[map]": "depthwise",
    "coefficient_value[depthwise].kernel": "7+3",
}
ATTENTION = {"query_key": "scaled_dot", "activation[pairs]": "softmax"}

SEARCH = Search(
    bases={
        "digits": override(RunConfig(model=small, data=DIGITS, recipe=SMALL_DIGITS), SHORT),
        "fashion-mnist": override(RunConfig(model=half, data=FASHION_MNIST, recipe=SMALL), SHORT | IMAGES),
    },
    propose=propose,
    minimize=("macs",),
    constraints={"macs": 6e6},
    known={"ffnet": SIZE | FFNET, "attention": SIZE | ATTENTION},
    trials=48,
)
