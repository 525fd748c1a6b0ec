"""Evaluation of checkpoints: each image as timm prepares it for that network, classes by name."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import PretrainedCfg

from metamixer.recipes import IMAGENET
from metamixer.training.score import score

MODEL = "test_resnet"


@pytest.mark.parametrize(
    "settings",
    [
        {"crop_mode": "squash"},
        {"crop_mode": "border"},
        {"interpolation": "bilinear", "crop_pct": 0.8},
        {"crop_pct": 1.15},
        {},
    ],
)
def test_images_are_prepared_as_timm_says(tmp_path, monkeypatch, settings):
    """13.7: the crop's mode was ignored, and bilinear networks were refused."""
    rng = np.random.default_rng(0)
    for c, name in enumerate(("ash", "birch")):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (100 + 30 * c, 150 - 20 * i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "val" / name / f"{i}.png")
    cfg = {**timm.get_pretrained_cfg(MODEL).to_dict(), "input_size": (3, 96, 128), **settings}
    monkeypatch.setattr("metamixer.training.score.get_pretrained_cfg", lambda name: PretrainedCfg(**cfg))
    model = timm.create_model(MODEL, num_classes=2).eval()
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    changes = {"root": str(tmp_path)}
    overlay = {"pretrained_cfg_overlay": {"state_dict": model.state_dict(), "num_classes": 2}, "num_classes": 2}
    transform = create_transform(**resolve_data_config(pretrained_cfg=cfg, use_test_size=True))
    rows, _, _ = score(str(tmp_path / "mine.pth"), IMAGENET, changes, MODEL, "cpu")
    images, classes = [], []
    for c, name in enumerate(("ash", "birch")):
        for i in range(3):
            images.append(transform(Image.open(tmp_path / "val" / name / f"{i}.png").convert("RGB")))
            classes.append(c)
    with torch.inference_mode():
        logits = timm.create_model(MODEL, pretrained=True, **overlay).eval()(torch.stack(images))
    assert logits.shape == (6, 2)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(classes))
    assert rows["raw"]["loss"] == pytest.approx(float(expected), rel=1e-5)
