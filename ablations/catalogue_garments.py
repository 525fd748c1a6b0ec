"""Which published mixer helps where every pixel is asked? The catalogue in the segmentation network of `garments`.

All have one learning rate, 0.01: the best of three for every rung of `garments`.

    python launch.py run catalogue_garments --seeds 0    # 49 runs, 31 minutes of one core

Measured, one seed: attention 24.4 % mIoU, FFNified attention 26.0, no mixing 26.1; no probe predicts the order
(docs/findings.md).
"""

from ablations.catalogue import narrow_heads
from ablations.garments import GRID as GARMENTS
from metamixer.config import override
from metamixer.presets import BASELINES, PRESETS
from sweeps import Grid, Variant

GRID = Grid(
    bases={name: override(base, {"recipe.lr": 0.01}) for name, base in GARMENTS.bases.items()},
    base="attention",
    match="macs",
    variants={
        name: Variant(changes={"model.backbone.stages.*.token_mixer": narrow_heads(mixer)})
        for name, mixer in (PRESETS | BASELINES).items()
    },
)
