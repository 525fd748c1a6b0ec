"""What can every published mixer do? The catalogue on all probes, at the same multiply-adds.

Three seeds and three learning rates for each. Finished runs stay, so begin with the probes that tell most.

    python launch.py run catalogue_profile --data recall,relation,parity    # 1,323 runs
    python launch.py run catalogue_profile --data all                        # 4,851 runs
"""

from ablations.catalogue import MIXER, narrow_heads
from ablations.profile import GRID as PROFILE
from metamixer.presets import BASELINES, PRESETS
from sweeps import Grid, Variant

GRID = Grid(
    bases=PROFILE.bases,
    base="attention",
    match="macs",
    lrs=PROFILE.lrs,
    variants={name: Variant(changes={MIXER: narrow_heads(mixer)}) for name, mixer in (PRESETS | BASELINES).items()},
)
