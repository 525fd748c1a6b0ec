"""Is a mixer more than the sum of its slots?

Every cell of query-key × activation × coefficient-value for operations that hand on a map, in three seeds: a full
factorial. It separates what a slot buys on average from what it buys only beside certain others. The channel mixer is
the plain FFN, so that tokens are mixed nowhere else but in the stem and between the stages; a normalisation stands in
front of every mixer, so that no slot needs one of its own. Widths are scaled until each cell has the multiply-adds of
the base, FFNified attention's cell.

    python launch.py run slot_interactions --data fashion-mnist   # 108 runs, about 16 s of one core each

Measured on Fashion-MNIST: 77.3 to 78.7 %. Only the coefficient-value slot counts beyond the noise: a product gains 0.32
points on average, a 1×1 convolution loses 0.20.
"""

from itertools import product

from ablations.catalogue import MIXER, MODEL, half, small
from metamixer.config import override
from metamixer.recipes import DIGITS, FASHION_MNIST, SCREENING, SMALL, SMALL_DIGITS
from metamixer.training.run_config import RunConfig
from sweeps import Grid, Variant

KEYS = {
    "linear": {"name": "linear", "expansion": 1.0},
    "depthwise3": {"name": "depthwise", "kernel_size": 3},
    "depthwise7": {"name": "depthwise", "kernel_size": 7},
    "token_linear": {"name": "token_linear"},
}
ACTIVATIONS = ("identity", "relu", "gelu")
VALUES = {
    "linear": {"name": "linear"},
    "depthwise7": {"name": "depthwise", "kernel_size": 7},
    "hadamard": {"name": "hadamard"},
}


def cell(key: str, activation: str, value: str) -> Variant:
    mixer = {
        "query": "linear",
        "query_key": KEYS[key],
        "activation": activation,
        "coefficient_value": VALUES[value],
    }
    return Variant(changes={MIXER: mixer})


GRID = Grid(
    bases={
        "digits": override(RunConfig(model=small, data=DIGITS, recipe=SMALL_DIGITS), MODEL),
        "fashion-mnist": override(RunConfig(model=half, data=FASHION_MNIST, recipe=SMALL), MODEL | SCREENING),
    },
    base="depthwise7-gelu-depthwise7",
    match="macs",
    variants={"-".join(cells): cell(*cells) for cells in product(KEYS, ACTIVATIONS, VALUES)},
)
