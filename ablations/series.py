"""How far must a forecaster's token mixer see? FFNet's forecaster with other mixers, and DLinear beside it.

Kernels of 5, 25 and 51 tokens of 48, attention over all of them, and an MLP over tokens; the query mixes the variables
in the first three. Beijing's air and weather, 96 hours from 96 (docs/tasks.md).

    python launch.py run series     # 63 runs, about a quarter of a minute of one core each

Measured: MSE 0.512 (k51), 0.511 (attention, at 2.1 times the cost), 0.517 (k5, worse), 0.526 (no_mixing, worse), 0.531
(DLinear, worse); seasonal naive 0.90 (docs/tasks.md).
"""

from metamixer.recipes import named_run
from sweeps import Grid, Variant

MIXER = "model.blocks.token_mixer"
ATTENTION = {
    "query": "linear",
    "query_key": {"name": "scaled_dot", "head_dim": 16},
    "activation": "softmax",
    "coefficient_value": "matmul",
}


def kernel(size: int) -> Variant:
    return Variant(changes={f"{MIXER}.query_key.kernel_size": size, f"{MIXER}.coefficient_value.kernel_size": size})


GRID = Grid(
    bases={"beijing": named_run("series")},
    base="k51",
    lrs=(8e-3, 3e-2),
    variants={
        "k51": Variant(),
        "k25": kernel(25),
        "k5": kernel(5),
        "attention": Variant(changes={MIXER: ATTENTION}),
        "token_mlp": Variant(changes={MIXER: "mlp_mixer"}),
        "no_mixing": Variant(changes={MIXER: {"name": "identity"}}),
        "dlinear": Variant(changes={"model": {"network": "dlinear"}}, also="two linear maps, no mixer"),
    },
)
