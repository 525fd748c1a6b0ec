"""How far does a mixer reach, and how much does it hold? Two probes at several values of their dial, as curves.

`shift` asks for the symbol so many cells away, on 8×8 cells; `recall` asks for the value of one of so many keys.

    python launch.py run dials --data all       # 288 runs, about 5 minutes on 2 cores
"""

from ablations.ffnification import MIXER
from ablations.profile import GRID as PROFILE
from metamixer.config import override
from metamixer.presets import PRESETS
from sweeps import Grid, Variant

RECALL, SHIFT = PROFILE.bases["recall"], {"data.task": {"name": "shift", "size": 8}}

GRID = Grid(
    bases={
        **{f"shift_{far}": override(RECALL, SHIFT | {"data.task.distance": far}) for far in (1, 2, 3, 4)},
        **{f"recall_{pairs}": override(RECALL, {"data.task.pairs": pairs}) for pairs in (2, 4, 8, 16)},
    },
    base="attention",
    match="macs",
    lrs=PROFILE.lrs,
    variants={
        **{name: PROFILE.variants[name] for name in ("attention", "depthwise", "parallel_branch")},
        "linear_attention": Variant(changes={MIXER: PRESETS["linear_attention"]}),
    },
)
