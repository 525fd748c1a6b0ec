"""A run so small that it trains in a second, with every ingredient of the full recipe switched on."""

from pathlib import Path

from metamixer import override
from metamixer.ffnet import ffnet
from metamixer.recipes import DIGITS, SMALL_DIGITS
from metamixer.training.run_config import RunConfig

MODEL = ffnet(
    (1, 1, 1, 1), (8, 8, 16, 16), token_kernels=(3, 3, 3, 3), channel_kernels=(3, 3, 3, 3), stem_width=8, stem_stride=1
)
RUN = override(
    RunConfig(model=MODEL, data=DIGITS, recipe=SMALL_DIGITS),
    {
        "data.train_samples": 160,
        "data.val_samples": 64,
        "recipe.epochs": 3,
        "recipe.batch_size": 32,
        "recipe.rand_augment": "rand-m9-mstd0.5-inc1",
        "recipe.erase_prob": 0.25,
        "recipe.mixup_alpha": 0.8,
        "recipe.cutmix_alpha": 1.0,
        "recipe.drop_path_rate": 0.2,
        "recipe.ema_decay": 0.9,
    },
)
# changes for a folder of images in three classes, read one at a time
FOLDER = {
    "data.name": "folder",
    "data.channels": 3,
    "data.mean": [0.5, 0.4, 0.3],
    "data.std": [0.2, 0.3, 0.4],
    "data.num_classes": 3,
    "data.train_samples": None,
    "recipe.batch_size": 8,
}
STEPS = 3 * 160 // 32
GRID = """
'''Does the activation matter?'''
import sys
sys.path.insert(0, "TESTS")
from small import RUN
from sweeps import Grid, Variant
KEY = "model.stages.*.token_mixer.activation"
GRID = Grid(bases={"tiny": RUN}, base="gelu", seeds=(0, 1),
            variants={"gelu": Variant(), "relu": Variant(changes={KEY: "relu"}),
                      "diverging": Variant(changes={"recipe.lr": 1e30})})
"""


def write_grid(folder: Path) -> Path:
    """A grid's file: two activations, and a run that diverges."""
    path = folder / "tiny.py"
    path.write_text(GRID.replace("TESTS", str(Path(__file__).parent)))
    return path
