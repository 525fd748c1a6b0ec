"""Which published mixer is worth its multiply-adds, all else equal?

Every preset and baseline as the token mixer of one small network whose channel mixer is the plain FFN, so that tokens
are mixed nowhere else but in the stem and between the stages. Widths are scaled until each variant has the
multiply-adds of the base, self-attention. Heads have 16 channels at the base's width.

The base `patches` is the network of the probes on patches of 4×4 pixels, 7×7 tokens. It has no such other place. Of the
learning rates 0.003, 0.01 and 0.02 the last did best on validation images for three of four mixers (attention, FFNified
attention, depthwise); no mixing did best at 0.01.

    python launch.py run catalogue --data fashion-mnist    # 147 runs
    python launch.py run catalogue --data patches          # 147 runs, about an hour on 2 cores

Measured on Fashion-MNIST: attention 75.19 ± 0.41 %, FFNified attention 78.16 ± 0.06, no mixing 75.70 ± 0.13; nothing
stands after Holm's correction. On patches: attention 83.65 ± 0.19 %, FFNified attention 86.60 ± 0.14 (a hint), no
mixing 85.45 ± 0.24 (a hint), HorNet 87.09 ± 0.14 (better). docs/mixers.md has all.
"""

from ablations.ffnification import ATTENTION
from metamixer.architecture import isotropic
from metamixer.config import override
from metamixer.ffnet import ffnet
from metamixer.mixer import resolve_mixer
from metamixer.operation import OperationConfig
from metamixer.presets import BASELINES, PRESETS
from metamixer.recipes import DIGITS, FASHION_MNIST, PROBE, SMALL, SMALL_DIGITS
from metamixer.training.run_config import RunConfig
from sweeps import Grid, Variant

MIXER = "model.stages.*.token_mixer"
# a normalisation in front of every mixer, as most of them have
MODEL = {"model.norm": "batch", "model.stages.*.channel_mixer": "ffn"}

# in channels; a state space doubles the width
WIDEST_HEADS = {"query_key": 16, "coefficient_value": 32}
# so many runs have to be short, too short for an average of the weights
SHORT = {"data.train_samples": 2000, "recipe.ema_decay": None}


def narrow_heads(mixer: dict) -> dict:
    """The mixer with heads of 16 channels where those of its paper are wider than the first stage."""
    resolved = resolve_mixer(mixer)
    if isinstance(resolved, OperationConfig):
        return mixer
    slots = resolved.to_dict()
    for slot, widest in WIDEST_HEADS.items():
        # pairs of heads become one
        widest = widest // 2 if slots["activation"]["name"] == "differential" else widest
        if (slots[slot].get("head_dim") or 0) > widest:
            slots[slot]["head_dim"] = widest
    return slots


small = ffnet((1, 1, 2, 1), (16, 32, 64, 128), stem_width=16, stem_stride=1)
half = override(small, {"stem_stride": 2})

GRID = Grid(
    bases={
        "digits": override(RunConfig(model=small, data=DIGITS, recipe=SMALL_DIGITS), MODEL),
        "fashion-mnist": override(RunConfig(model=half, data=FASHION_MNIST, recipe=SMALL), MODEL | SHORT),
        "patches": RunConfig(
            model=isotropic(2, 32, ATTENTION, patch=4),
            data=FASHION_MNIST,
            recipe=override(PROBE, {"batch_size": 64, "lr": 0.02}),
        ),
    },
    base="attention",
    match="macs",
    variants={name: Variant(changes={MIXER: narrow_heads(mixer)}) for name, mixer in (PRESETS | BASELINES).items()},
)
