"""Does attention matter, or the framework? From self-attention to FFNified attention, one change at a time.

The way of arXiv 2406.02021, from softmax to GELU and from computed keys and values to depthwise convolutions. Each
rung builds on the one before and changes one slot, or one parameter of the slots that have it. One rung changes two:
static keys and values need interactions without pairs of tokens, and pairs leave both interactions at once. So
`pointwise` takes that step alone. Keys and values are still computed, and each token meets its own. From there, keys
and values become static in both orders. The last rung is FFNet's mixer.

Widths are scaled to the multiply-adds of attention. Each variant runs at three learning rates, and validation images
choose. Two baselines outside the slots show what any mixing of tokens buys: none at all, and plain pooling.

    python launch.py run ffnification                          # digits, 117 runs of 3 to 4 seconds
    python launch.py run ffnification --data fashion-mnist     # 117 runs

Measured on digits: attention 97.93 ± 0.58 %, FFNified attention (`parallel_branch`) +0.33 [−1.26, +1.93], no mixing
+0.20 [−0.79, +1.19]. Nothing differs but `pointwise`, 8.53 ± 1.14: its branches start at 64 times their inputs, and no
run of it learns. With `--set recipe.branch_ratio=0.5` it gets 98.27 ± 0.12, but one seed in three of `gelu` then stays
at chance (docs/findings.md). An earlier ladder ran on Fashion-MNIST; this one was not run there as a whole.
"""

from metamixer.config import override
from metamixer.ffnet import CONFIGS, ffnet
from metamixer.recipes import DIGITS, FASHION_MNIST, FFNET_1, IMAGENET, SMALL, SMALL_DIGITS
from metamixer.training.run_config import RunConfig
from sweeps import Grid, Variant

MIXER = "model.stages.*.token_mixer"
QUERY, KEY, VALUE = f"{MIXER}.query", f"{MIXER}.query_key", f"{MIXER}.coefficient_value"
ATTENTION = {
    "query": "linear",
    "query_key": {"name": "scaled_dot", "head_dim": 16},
    "activation": "softmax",
    "coefficient_value": "matmul",
}
POINTWISE = {"query": "linear", "query_key": "hadamard", "activation": "gelu", "coefficient_value": "hadamard"}
DEPTHWISE = {"name": "depthwise", "kernel_size": 3}

RUNGS = {
    "attention": Variant(),
    "gelu": Variant(on="attention", changes={f"{MIXER}.activation": {"name": "gelu", "over_keys": True}}),
    "pointwise": Variant(
        on="gelu", changes={MIXER: POINTWISE}, also="pairs of tokens leave both interactions, and GELU's mean over keys"
    ),
    "static_keys": Variant(on="pointwise", changes={KEY: {"name": "linear", "expansion": 1.0}}),
    "static_values": Variant(on="pointwise", changes={VALUE: "linear"}),
    "static": Variant(on="static_keys", changes={VALUE: "linear"}),
    "depthwise_keys": Variant(on="static", changes={KEY: DEPTHWISE}),
    "depthwise": Variant(on="depthwise_keys", changes={VALUE: DEPTHWISE}),
    "norm": Variant(on="depthwise", changes={f"{slot}.norm": True for slot in (QUERY, KEY, VALUE)}),
    "large_kernel": Variant(on="norm", changes={f"{slot}.kernel_size": 7 for slot in (KEY, VALUE)}),
    "parallel_branch": Variant(on="large_kernel", changes={f"{slot}.small_kernel": 3 for slot in (KEY, VALUE)}),
}
BASELINES = {
    "no_mixing": Variant(changes={MIXER: {"name": "identity"}}),
    "pooling": Variant(changes={MIXER: {"name": "pooling"}}),
}

SAME = {"model.norm": "batch", MIXER: ATTENTION, "recipe.init": "fan_in"}
small = ffnet((1, 1, 2, 1), (16, 32, 64, 128), channel_kernels=(3, 3, 3, 3), stem_width=16, stem_stride=1)
half = override(small, {"stem_stride": 2})  # a quarter of the cost; the last map is 2 wide, which the plan notes

GRID = Grid(
    bases={
        "digits": override(RunConfig(model=small, data=DIGITS, recipe=SMALL_DIGITS), SAME | {"recipe.lr": 3e-3}),
        "fashion-mnist": override(RunConfig(model=half, data=FASHION_MNIST, recipe=SMALL), SAME),
        "imagenet": override(
            RunConfig(model=CONFIGS["ffnet_1"], data=IMAGENET, recipe=FFNET_1), SAME | {"data.val_samples": 10_000}
        ),
    },
    base="attention",
    match="macs",
    lrs=(1e-3, 3e-3, 1e-2),
    variants={**RUNGS, **BASELINES},
)
