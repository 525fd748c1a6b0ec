"""A search so small that a trial of it trains in seconds."""

from pathlib import Path

SEARCH = """
'''Which activation, and at which learning rate?'''
import sys
sys.path.insert(0, "TESTS")
from small import RUN
from metamixer import override
from sweeps.search import Search
BASE = override(RUN, {"recipe.epochs": EPOCHS, "recipe.warmup_epochs": 0, "recipe.rand_augment": None})
KEY = "model.stages.*.token_mixer"
AS_BASE = {"activation": "gelu", "kernel": 3, "width": 8, "lr": BASE.recipe.lr}
def propose(trial):
    width = trial.suggest_categorical("width", [4, 8, 16])
    return {
        f"{KEY}.activation": trial.suggest_categorical("activation", ["gelu", "relu", "silu", "identity"]),
        f"{KEY}.query_key.kernel_size": trial.suggest_categorical("kernel", [3, 5]),
        **{f"model.stages.{i}.width": width * (1 + i // 2) for i in range(4)},
        "recipe.lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True),
    }
SEARCH = Search(
    bases={"tiny": BASE},
    propose=propose,
    MORE
    trials=TRIALS,
)
"""
FRONT = 'minimize=("macs",), constraints={"macs": 3e5}, known={"base": AS_BASE},'


def write_search(folder: Path, trials: int = 4, epochs: int = 1, more: str = FRONT) -> Path:
    """A search's file: activation, kernel, width and learning rate; by default with a front and a limit."""
    text = SEARCH.replace("TESTS", str(Path(__file__).parent)).replace("EPOCHS", str(epochs))
    path = folder / "tiny.py"
    path.write_text(text.replace("TRIALS", str(trials)).replace("MORE", more))
    return path
