"""How large a kernel does FFNified attention want, with normalisation held fixed?

The published code ties the kernel to the normalisation: only 7×7 has BatchNorm and a parallel branch. Here
every kernel has BatchNorm and no branch, so that size alone changes; the last variant adds the branch.

    python launch.py run kernel_size --data fashion-mnist    # 18 runs, 30 to 70 s of one core each

Measured on Fashion-MNIST: 3×3 79.43 %, 13×13 +0.62 points [−0.93, +2.16]; all sizes are inside the noise.
"""

from metamixer.config import override
from metamixer.ffnet import ffnet
from metamixer.recipes import DIGITS, FASHION_MNIST, SCREENING, SMALL, SMALL_DIGITS
from metamixer.training.run_config import RunConfig
from sweeps import Grid, Variant

MIXER = "model.stages.*.token_mixer"


def kernel(size: int, **branch: int) -> dict:
    conv = {"name": "depthwise", "kernel_size": size, "norm": True, **branch}
    return {f"{MIXER}.query_key": conv, f"{MIXER}.coefficient_value": conv}


small = ffnet((1, 1, 2, 1), (16, 32, 64, 128), channel_kernels=(3, 3, 3, 3), stem_width=16, stem_stride=1)

GRID = Grid(
    bases={
        "digits": override(RunConfig(model=small, data=DIGITS, recipe=SMALL_DIGITS), kernel(3)),
        "fashion-mnist": override(RunConfig(model=small, data=FASHION_MNIST, recipe=SMALL), kernel(3) | SCREENING),
    },
    base="k3",
    variants={
        "k3": Variant(),
        **{f"k{size}": Variant(changes=kernel(size)) for size in (5, 7, 9, 13)},
        "k7_branch3": Variant(changes=kernel(7, small_kernel=3)),
    },
)
