"""Named data and recipes that grids start from."""

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .config import override
from .training.config import DataConfig, Recipe

# scikit-learn's scanned digits, enlarged from 8 to 12 px: real images that need no download
DIGITS = DataConfig(
    name="digits", num_classes=10, channels=1, image_size=12, mean=(0.305,), std=(0.34,), val_samples=100
)

# Fashion-MNIST (arXiv 1708.07747): 10,000 of its training images, so that a run takes minutes, and 1,000
# held out for choices; the test split is its own 10,000
FASHION_MNIST = DataConfig(
    name="fashion-mnist",
    num_classes=10,
    channels=1,
    image_size=28,
    mean=(0.286,),
    std=(0.353,),
    train_samples=10_000,
    val_samples=1000,
)

# ImageNet-1K as a folder of train/CLASS/*.jpeg and validation/CLASS/*.jpeg
IMAGENET = DataConfig(
    name="folder",
    root="imagenet",
    num_classes=1000,
    channels=3,
    image_size=256,
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    eval_crop=0.9,
)

# FFNet's common recipe with FFNet-1's mixup and drop path (arXiv 2406.02021): 81.3 % on ImageNet at 256 px
FFNET_1 = Recipe(mixup=0.2, drop_path=0.1)

# The same, scaled down: a short schedule, weak augmentation, an EMA as short as the run
SMALL = Recipe(
    epochs=5,
    warmup_epochs=1,
    cooldown_epochs=0,
    batch_size=64,
    lr=3e-3,
    warmup_lr=1e-5,
    crop_scale=(0.6, 1.0),
    rand_augment=None,
    color_jitter=0.0,
    erase=0.0,
    mixup=0.0,
    cutmix=0.0,
    ema=0.98,
)
# a mirrored digit is no digit; with a tenth of the steps the EMA is shorter again, lest the average
# of BatchNorm's statistics still remember their start
SMALL_DIGITS = override(SMALL, {"flip": 0.0, "lr": 4e-3, "ema": 0.8})
