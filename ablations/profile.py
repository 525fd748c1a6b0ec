"""What can each rung of the ladder do? FFNification on probes, in a network that mixes tokens nowhere else.

Each probe asks one ability, and `majority`, the control, asks for no mixing at all (docs/probes.md). Measured on one
H100, 3 seeds: recall is solved by attention (100 %) and without softmax (100 %), and is lost with static keys (6 %, as
by chance) and FFNet's mixer (23 %); shift, parity, path and match are the other way round.

    python launch.py run profile                       # recall, two minutes on 2 cores
    python launch.py run profile --data recall,shift
    python launch.py run profile --data all            # all probes, 297 runs: 4 minutes on one H100, 16 at a time
"""

from ablations.ffnification import ATTENTION, GRID, MIXER
from metamixer.config import override
from metamixer.recipes import named_run
from sweeps import Grid

recall = override(named_run("recall"), {MIXER: ATTENTION})

PROBES = ("recall", "noisy_recall", "split_recall", "shift", "parity", "needle", "match", "path", "relation", "strips")

GRID = Grid(
    bases={probe: override(recall, {"data.task": {"name": probe}}) for probe in (*PROBES, "majority")},
    base="attention",
    variants=GRID.variants,
)
