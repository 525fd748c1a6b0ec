"""How far does a mixer reach, and how much does it hold? Two probes at several values of their dial, as curves.

`shift` asks for the symbol 1 to 4 cells away, on 8×8 cells. `recall` asks for the value of one of 2 to 16 keys.

    python launch.py run dials --data all       # 288 runs, about 5 minutes on 2 cores

Measured: attention and linear attention hold 16 pairs, 7×7 kernels get 50 to 16 % (docs/probes.md).
"""

from ablations.ffnification import MIXER
from ablations.profile import GRID as PROFILE
from metamixer.config import override
from metamixer.presets import preset
from metamixer.training.run_config import RunConfig
from sweeps import Grid, Variant

CONV = {"name": "depthwise", "kernel_size": 3, "norm": True}


def on(task: dict) -> RunConfig:
    return override(PROFILE.bases["recall"], {"data.task": task})


GRID = Grid(
    bases={
        **{f"shift_{far}": on({"name": "shift", "size": 8, "distance": far}) for far in (1, 2, 3, 4)},
        **{f"recall_{pairs}": on({"name": "recall", "pairs": pairs}) for pairs in (2, 4, 8, 16)},
    },
    base="attention",
    match="macs",
    lrs=PROFILE.lrs,
    variants={
        "attention": Variant(),
        "linear_attention": Variant(changes={MIXER: "linear_attention"}),
        "kernel_3": Variant(changes={MIXER: preset("ffnified_attention", query_key=CONV, coefficient_value=CONV)}),
        "kernel_7": Variant(changes={MIXER: "ffnified_attention"}),
    },
)
