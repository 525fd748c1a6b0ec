"""A search so small that a trial of it trains in seconds."""

from pathlib import Path

SEARCH = """
'''Which activation, and at which learning rate?'''
import sys
sys.path.insert(0, "TESTS")
from small import RUN
from metamixer import override
from sweeps.search import Search
from sweeps.space import Choice, Integer, Mixer, Real, Together
BASE = override(RUN, {"recipe.epochs": EPOCHS, "recipe.warmup_epochs": 0, "recipe.rand_augment": None})
KEY = "model.stages.*.token_mixer"
def widths(first):
    return {f"model.stages.{i}.width": first * (1 + i // 2) for i in range(4)}
SEARCH = Search(
    bases={"tiny": BASE},
    space={
        f"{KEY}.activation": Choice(options=("gelu", "relu", "silu", "identity")),
        f"{KEY}.query_key.kernel_size": Choice(options=(3, 5)),
        "width": Together(options={str(first): widths(first) for first in (4, 8, 16)}),
        "recipe.lr": Real(low=1e-4, high=1e-2, log=True),
    },
    MORE
    trials=TRIALS,
)
"""
FRONT = 'objectives=("top1", "macs"), constraints={"macs": 3e5}, known={"base": {}},'


def write_search(folder: Path, trials: int = 4, epochs: int = 1, more: str = FRONT) -> Path:
    """A search's file: activation, kernel, width and learning rate; by default with a front and a limit."""
    text = SEARCH.replace("TESTS", str(Path(__file__).parent)).replace("EPOCHS", str(epochs))
    path = folder / "tiny.py"
    path.write_text(text.replace("TRIALS", str(trials)).replace("MORE", more))
    return path
