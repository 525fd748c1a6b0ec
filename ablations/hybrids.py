"""Where, if anywhere, does attention pay: in no stage, the last one, the last two, or all?

The second version of arXiv 2406.02021 adds hybrids: FFNified attention in some stages, self-attention in others. The
base is FFNified attention everywhere; only the token mixers of the named stages change.

    python launch.py run hybrids --data fashion-mnist    # 12 runs, about 10 minutes on 2 cores

Measured: none 85.45 ± 0.54 %, the last stage +0.14 [−1.32, +1.59], inside the noise; the last two stages −4.10 [−4.53,
−3.67] and all −3.45 [−4.12, −2.78], both worse, at 1.2 and 3.1 times the multiply-adds (docs/findings.md).
"""

from metamixer.config import override
from metamixer.ffnet import CONFIGS, ffnet
from metamixer.presets import preset
from metamixer.recipes import DIGITS, FASHION_MNIST, FFNET_1, IMAGENET, SMALL, SMALL_DIGITS
from metamixer.training.run_config import RunConfig
from sweeps import Grid, Variant

ATTENTION = preset("attention", query_key={"name": "scaled_dot", "head_dim": 16})
BATCH = {"model.norm": "batch"}  # in front of every mixer of every variant: attention wants it

small = ffnet((1, 1, 2, 1), (16, 32, 64, 128), channel_kernels=(3, 3, 3, 3), stem_width=16, stem_stride=1)

GRID = Grid(
    bases={
        "digits": override(RunConfig(model=small, data=DIGITS, recipe=SMALL_DIGITS), BATCH),
        "fashion-mnist": override(RunConfig(model=small, data=FASHION_MNIST, recipe=SMALL), BATCH),
        "imagenet": override(RunConfig(model=CONFIGS["ffnet_1"], data=IMAGENET, recipe=FFNET_1), BATCH),
    },
    base="none",
    variants={
        "none": Variant(),
        "stage_4": Variant(changes={"model.stages.3.token_mixer": ATTENTION}),
        "stages_3_4": Variant(on="stage_4", changes={"model.stages.2.token_mixer": ATTENTION}),
        "all": Variant(changes={"model.stages.*.token_mixer": ATTENTION}),
    },
)
