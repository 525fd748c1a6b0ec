"""FFNet against the published networks: outputs, names, parameters, multiply-adds, timm's loading road."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from golden.weights import images, weights
from timm.models import reparameterize_model

from metamixer import checkpoint_filter_fn
from metamixer.cost import count
from metamixer.ffnet import released_name

GOLDEN = Path(__file__).parent / "golden"
SHAPES = json.loads((GOLDEN / "ffnet_state_dict.json").read_text())
PUBLISHED = {  # parameters: training form, folded; multiply-adds of the folded form at 256 px
    "ffnet_1": (13_775_656, 13_660_152, 2.985e9),
    "ffnet_2": (27_208_408, 26_908_440, 6.003e9),
    "ffnet_3": (48_817_896, 48_330_632, 10.146e9),
    "ffnet_4": (79_868_968, 79_200_360, 19.166e9),
}


def released(name):
    return {key: torch.from_numpy(value) for key, value in weights(SHAPES[name]).items()}


def relative(output, golden):
    return np.linalg.norm(output.numpy() - golden) / np.linalg.norm(golden)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", ["ffnet_1", "ffnet_3"])
def test_outputs_equal_the_published_network(name, folded):
    model = timm.create_model(name).eval()
    model.load_state_dict(checkpoint_filter_fn(released(name), model))
    if folded:
        model = reparameterize_model(model)
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for n, m in model.named_modules() if n != "norm")
    golden = np.load(GOLDEN / f"{name}.npz")
    for size in (64, 256):
        x = torch.from_numpy(images(size))
        with torch.inference_mode():
            features = model.forward_features(x)
            assert relative(features.mean((2, 3)), golden[f"features_mean_{size}"]) < 1e-5
            assert relative(model.forward_head(features), golden[f"logits_{size}"]) < 1e-5


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_names_and_shapes_are_ours(name):
    model = timm.create_model(name, device="meta")
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert {released_name(key): shape for key, shape in SHAPES[name].items()} == ours
    training, _, _ = PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters()) == training


@pytest.mark.parametrize("name", PUBLISHED)
def test_folded_parameters_and_multiply_adds_are_the_published(name):
    _, folded, macs = PUBLISHED[name]
    cost = count(timm.create_model(name), (3, 256, 256))
    assert cost.parameters == folded
    assert cost.macs == pytest.approx(macs, rel=5e-4)


@pytest.mark.parametrize("road", ["file", "address"])
def test_pretrained_loads_a_released_checkpoint_by_timms_road(tmp_path, monkeypatch, road):
    """With the arguments of its training in it, which `weights_only` alone would refuse."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))  # timm looks there before it downloads
    path = tmp_path / "checkpoints" / "ffnet_1.pth.tar"
    path.parent.mkdir()
    torch.save({"state_dict": released("ffnet_1"), "epoch": 310, "args": argparse.Namespace(lr=1e-3)}, path)
    overlay = {"file": str(path)} if road == "file" else None
    model = timm.create_model("ffnet_1", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.inference_mode():
        logits = model(torch.from_numpy(images(64)))
    assert relative(logits, np.load(GOLDEN / "ffnet_1.npz")["logits_64"]) < 1e-5


def test_every_released_weight_has_an_address():
    names = {
        "ffnet_1.in1k": "ffnet_1",
        "ffnet_1.dist_in1k": "ffnet_1_distillation",
        "ffnet_2.in1k": "ffnet_2",
        "ffnet_2.dist_in1k": "ffnet_2_distillation",
        "ffnet_3.in1k": "ffnet_3",
        "ffnet_3.dist_in1k": "ffnet_3_distillation",
        "ffnet_3.in1k_384": "ffnet_3_384",
        "ffnet_4.in1k_384": "ffnet_4_384",
    }
    for tag, file in names.items():
        cfg = timm.get_pretrained_cfg(tag)
        assert cfg.url.endswith(f"/FFNet/releases/download/v1.0/{file}.pth.tar")
        assert cfg.input_size[-1] == (384 if "384" in tag else 256)


def test_stochastic_depth_grows_linearly_over_all_blocks():
    model = timm.create_model("ffnet_1", drop_path_rate=0.13, device="meta")
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx(np.linspace(0, 0.13, 14).tolist())


def test_layer_scale_has_the_released_shape_and_start():
    scales = [p for n, p in timm.create_model("ffnet_3").named_parameters() if n.endswith("_scale.scale")]
    assert len(scales) == 70
    assert all(p.shape[1:] == (1, 1) and bool((p == 1e-6).all()) for p in scales)
