"""A run so small that it trains in a second, with every ingredient of the full recipe switched on."""

from metamixer import override
from metamixer.ffnet import ffnet
from metamixer.recipes import DIGITS, SMALL_DIGITS
from metamixer.training.config import RunConfig

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
        "recipe.erase": 0.25,
        "recipe.mixup": 0.8,
        "recipe.cutmix": 1.0,
        "recipe.drop_path": 0.2,
        "recipe.ema": 0.9,
    },
)
STEPS = 3 * 160 // 32
