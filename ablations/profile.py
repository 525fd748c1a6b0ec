"""What can each rung of the ladder do? FFNification on probes, in a network that mixes tokens nowhere else.

Each probe asks one ability, and `majority`, the control, asks for no mixing at all (docs/probes.md). Of the rungs that
mix no tokens `pointwise` stands for all, so the step to depthwise keys and values is one here. A token MLP, which mixes
all tokens by learned weights, is a third baseline.

    python launch.py run profile --data recall,parity,shift,majority    # 360 runs, about 5 minutes on 2 cores
    python launch.py run profile --data all                             # all eleven probes

Measured: attention solves `recall` and `shift`; the last rung, FFNified attention, solves `shift` and `parity` and gets
22 % of `recall`; `majority` differs for none (docs/findings.md).
"""

from ablations.ffnification import ATTENTION, BASELINES, DEPTHWISE, KEY, MIXER, RUNGS, VALUE
from metamixer.config import override
from metamixer.recipes import named_run
from sweeps import Grid, Variant

BASE = override(named_run("recall"), {MIXER: ATTENTION})
PROBES = "recall parity shift majority noisy_recall split_recall needle match path relation strips".split()

GRID = Grid(
    bases={probe: override(BASE, {"data.task": {"name": probe}}) for probe in PROBES},
    base="attention",
    match="macs",
    lrs=(5e-3, 2e-2),
    variants={
        **{name: RUNGS[name] for name in ("attention", "gelu", "pointwise")},
        "depthwise": Variant(on="pointwise", changes={KEY: DEPTHWISE, VALUE: DEPTHWISE}),
        **{name: RUNGS[name] for name in ("norm", "large_kernel", "parallel_branch")},
        **BASELINES,
        "token_mlp": Variant(changes={MIXER: "mlp_mixer"}),
    },
)
