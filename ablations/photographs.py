"""What does a token mixer buy in super-resolution? FFNetSR's block with other mixers, on photographs.

Identity, a plain 3×3 depthwise convolution, FFNified attention of 3×3 and 7×7, and attention in windows of 7×7. Blocks
mix in their channel mixers too, which have a 3×3 convolution (docs/tasks.md). A LayerNorm stands in front of each
mixer, an option of the released code: without it, no mixing doubles the stream in every block.

    python launch.py run photographs    # 45 runs; attention in windows takes far longer than the others

Measured: 33.05 dB for ffnified_3, bicubic interpolation 32.52; 7×7 and depthwise as good, windows −0.35 [−0.43, −0.27].
"""

from metamixer.config import override
from metamixer.recipes import named_run
from sweeps import Grid, Variant

MIXER = "model.blocks.token_mixer"
WINDOWS = {
    "query": "linear",
    "query_key": {"name": "neighbourhood", "head_dim": 16, "kernel_size": 7},
    "activation": "softmax",
    "coefficient_value": "windowed_sum",
}

GRID = Grid(
    bases={"photographs": override(named_run("photographs"), {"model.norm": "layer"})},
    base="ffnified_3",
    lrs=(1e-3, 1e-2),
    variants={
        "ffnified_3": Variant(),
        "ffnified_7": Variant(
            changes={f"{MIXER}.query_key.kernel_size": 7, f"{MIXER}.coefficient_value.kernel_size": 7}
        ),
        "window_attention": Variant(changes={MIXER: WINDOWS}),
        "depthwise_3": Variant(changes={MIXER: {"name": "depthwise", "kernel_size": 3}}),
        "no_mixing": Variant(changes={MIXER: {"name": "identity"}}),
    },
    match="macs",
)
