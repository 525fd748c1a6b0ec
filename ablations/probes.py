"""What can each rung of the ladder do? FFNification on probes, in a network that mixes tokens nowhere else.

Each probe asks one ability: `recall` to find a key and read its value, `shift` to copy from a fixed place, `parity` to
compute on neighbours, `needle` to hear of one marked cell. `majority` is the control, which needs no mixing at all.
Answers are right by chance in 6.25 % of cases (parity: 50, majority: 25).

    python launch.py run probes                              # recall, about 4 minutes on 2 cores
    python launch.py run probes --data shift
"""

from ablations.ffnification import ATTENTION, GRID, MIXER
from metamixer.config import override
from metamixer.recipes import named_run
from sweeps import Grid

recall = override(named_run("recall"), {MIXER: ATTENTION})

GRID = Grid(
    bases={
        probe: override(recall, {"data.task": {"name": probe}})
        for probe in ("recall", "shift", "parity", "needle", "majority")
    },
    base="attention",
    variants=GRID.variants,
)
