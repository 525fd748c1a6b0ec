"""Does attention matter, or the framework? From self-attention to FFNified attention, one slot at a time.

The road of arXiv 2406.02021, figure 1: softmax gives way to GELU, computed keys to learned ones, computed
values to learned ones, 1×1 to depthwise, small kernels to large, one branch to two. Every rung builds on the
one before; the channel mixer, a normalisation in front of each mixer, widths and depths stay as they are.
Two baselines outside the slots show what any mixing of tokens buys: none at all, and plain pooling.

    python launch.py run ffnification                        # digits, about 4 minutes on 2 cores
    python launch.py run ffnification --data fashion-mnist
"""

from metamixer.config import override
from metamixer.ffnet import CONFIGS, ffnet
from metamixer.recipes import DIGITS, FASHION_MNIST, FFNET_1, IMAGENET, SMALL, SMALL_DIGITS
from metamixer.training.run_config import RunConfig
from sweeps import Grid, Variant

MIXER = "model.stages.*.token_mixer"
ATTENTION = {
    "query": "linear",
    "query_key": {"name": "scaled_dot", "head_dim": 16},
    "activation": "softmax",
    "coefficient_value": "matmul",
}
SAME = {"model.norm": "batch", MIXER: ATTENTION}

small = ffnet((1, 1, 2, 1), (16, 32, 64, 128), channel_kernels=(3, 3, 3, 3), stem_width=16, stem_stride=1)
half = override(small, {"stem_stride": 2})  # a quarter of the cost; the last map is 2 wide, which the plan notes

GRID = Grid(
    bases={
        "digits": override(RunConfig(model=small, data=DIGITS, recipe=SMALL_DIGITS), SAME),
        "fashion-mnist": override(RunConfig(model=half, data=FASHION_MNIST, recipe=SMALL), SAME),
        "imagenet": override(RunConfig(model=CONFIGS["ffnet_1"], data=IMAGENET, recipe=FFNET_1), SAME),
    },
    base="attention",
    variants={
        "attention": Variant(),
        "gelu": Variant(on="attention", changes={f"{MIXER}.activation": {"name": "gelu", "over_keys": True}}),
        # learned keys leave no pairs of tokens to sum over: values then act position by position
        "static_keys": Variant(
            on="gelu",
            changes={
                f"{MIXER}.query_key": {"name": "linear", "expansion": 1.0},
                f"{MIXER}.activation": "gelu",
                f"{MIXER}.coefficient_value": "hadamard",
            },
        ),
        "static_values": Variant(on="static_keys", changes={f"{MIXER}.coefficient_value": "linear"}),
        "depthwise": Variant(
            on="static_values",
            changes={
                f"{MIXER}.query_key": {"name": "depthwise", "kernel_size": 3, "norm": True},
                f"{MIXER}.coefficient_value": {"name": "depthwise", "kernel_size": 3, "norm": True},
            },
        ),
        "large_kernel": Variant(
            on="depthwise",
            changes={f"{MIXER}.query_key.kernel_size": 7, f"{MIXER}.coefficient_value.kernel_size": 7},
        ),
        "parallel_branch": Variant(
            on="large_kernel",
            changes={f"{MIXER}.query_key.small_kernel": 3, f"{MIXER}.coefficient_value.small_kernel": 3},
        ),
        "no_mixing": Variant(changes={MIXER: {"name": "identity"}}),
        "pooling": Variant(changes={MIXER: {"name": "pooling"}}),
    },
)
