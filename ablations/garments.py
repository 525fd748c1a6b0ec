"""Do the rungs of FFNification differ where every pixel is asked? Segmentation of garments on textured ground.

The ladder of `ffnification` in a small FFNet under a plain decoder (docs/tasks.md). Pictures are made up of
Fashion-MNIST's garments.

    python launch.py run garments       # 117 runs, about half a minute of one core each

Measured: attention 24.36 ± 0.32 % mIoU, 3×3 convolutions 27.34 ± 0.62 (a hint), FFNified attention 25.65 ± 0.64, no
mixing 25.57 ± 0.64; nothing stands after Holm's correction (docs/tasks.md).
"""

from ablations.ffnification import ATTENTION
from ablations.ffnification import GRID as LADDER
from metamixer.config import override
from metamixer.recipes import named_run
from sweeps import Grid, Variant


def _of_backbone(variant: Variant) -> Variant:
    changes = {key.replace("model.stages", "model.backbone.stages"): value for key, value in variant.changes.items()}
    return variant.model_copy(update={"changes": changes})


GRID = Grid(
    bases={"garments": override(named_run("garments"), {"model.backbone.stages.*.token_mixer": ATTENTION})},
    base="attention",
    lrs=(1e-3, 1e-2),
    variants={name: _of_backbone(variant) for name, variant in LADDER.variants.items()},
    match="macs",
)
