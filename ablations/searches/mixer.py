"""Which mixer, at which width, buys accuracy for its multiply-adds?

All four slots of the token mixer, the kernels of those that have one, the channel mixer's kernel, the widths and the
learning rate, on a small network; sought are top-1 on validation images and multiply-adds. FFNet's published mixer and
attention are tried first.

    python launch.py search mixer --data fashion-mnist
    python launch.py confirm mixer --data fashion-mnist    # a grid of the best, with other seeds and on test images
"""

from metamixer.config import override
from metamixer.ffnet import ffnet
from metamixer.recipes import DIGITS, FASHION_MNIST, SMALL, SMALL_DIGITS
from metamixer.training.run_config import RunConfig
from sweeps.search import Search
from sweeps.space import Choice, Mixer, Real, Together

TOKEN_MIXER = "model.stages.*.token_mixer"
CHANNEL_KERNEL = "model.stages.*.channel_mixer.query.kernel_size"

# a small branch beside a large kernel is FFNet's; the others are plain
BRANCHED = {"name": "depthwise", "kernel_size": 7, "norm": True, "small_kernel": 3}
PLAIN = {"name": "depthwise", "kernel_size": Choice(options=(3, 5, 7)), "norm": True}
DEPTHWISE = {"branched": BRANCHED, "depthwise": PLAIN}

SLOTS = Mixer(
    query={"identity": "identity", "linear": {"name": "linear", "norm": True}},
    query_key={
        **DEPTHWISE,
        "linear": {"name": "linear", "expansion": 1.0, "norm": True},
        "scaled_dot": {"name": "scaled_dot", "head_dim": 8},
        "neighbourhood": {"name": "neighbourhood", "head_dim": 8, "kernel_size": Choice(options=(3, 5))},
    },
    activation={"gelu": "gelu", "relu": "relu", "identity": "identity", "softmax": "softmax"},
    coefficient_value={
        **DEPTHWISE,
        "linear": "linear",
        "hadamard": "hadamard",
        "matmul": "matmul",
        "windowed_sum": "windowed_sum",
    },
)

small = ffnet((1, 1, 2, 1), (16, 32, 64, 128), channel_kernels=(3, 3, 3, 3), stem_width=16, stem_stride=1)
half = override(small, {"stem_stride": 2})

# trials are many, so they are short: too short for an average of the weights
SHORT = {"model.norm": "batch", "recipe.ema_decay": None, "recipe.epochs": 5}
IMAGES = {"data.train_samples": 5000}


def widths(first: int) -> dict:
    return {f"model.stages.{stage}.width": first * 2**stage for stage in range(4)}


SEARCH = Search(
    bases={
        "digits": override(RunConfig(model=small, data=DIGITS, recipe=SMALL_DIGITS), SHORT),
        "fashion-mnist": override(RunConfig(model=half, data=FASHION_MNIST, recipe=SMALL), SHORT | IMAGES),
    },
    space={
        TOKEN_MIXER: SLOTS,
        CHANNEL_KERNEL: Choice(options=(3, 5, 7)),
        "width": Together(options={str(first): widths(first) for first in (8, 16, 24)}),
        "recipe.lr": Real(low=1e-3, high=1e-2, log=True),
    },
    objectives=("top1", "macs"),
    constraints={"macs": 6e6},
    known={
        "ffnet": {TOKEN_MIXER: "ffnified_attention"},
        "attention": {
            TOKEN_MIXER: {
                "query": {"name": "linear", "norm": True},
                "query_key": {"name": "scaled_dot", "head_dim": 8},
                "activation": "softmax",
                "coefficient_value": "matmul",
            }
        },
    },
    trials=48,
)
