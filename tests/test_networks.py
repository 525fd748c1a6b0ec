"""What a name stands for: timm models, recipes, runs, checkpoints, mixers, and operations of one's own."""

import json

import pytest
import timm
import torch
from small import RUN
from test_commands import launch

from metamixer import ConfigError, override
from metamixer.cost import count
from metamixer.networks import find_network, size_of
from metamixer.plugins import load_module
from metamixer.presets import PRESETS
from metamixer.training import checkpoint
from metamixer.training.train import train

OPERATIONS = """
from metamixer import Activation, Baseline, register

@register
class Part(Activation):
    name = "part"
    def forward(self, scores):
        return scores / 2

@register
class Shift(Baseline):
    name = "shift"
    def forward(self, x):
        return x.roll(1, 3)
"""


def test_names():
    assert find_network("ffnet_mini", 16).input_size == (3, 16, 16)
    assert find_network("xca").input_size == (64, 28, 28)
    with pytest.raises(ConfigError, match="did you mean 'ffnet_1'"):
        find_network("fnet_1")
    with pytest.raises(ConfigError, match="'parity' is a task"):
        find_network("parity")
    with pytest.raises(ConfigError, match="not a timm model"):
        find_network("xca", source="weights.pt")


def test_sizes_of_the_command_line():
    assert [size_of(text) for text in (None, "224", "224x320", "224×320")] == [None, (224, 224), *[(224, 320)] * 2]
    for wrong in ("", "4", "224x", "224x320x3", "-32", "big"):
        with pytest.raises(ConfigError, match="a side of at least 8 pixels"):
            size_of(wrong)


@pytest.mark.parametrize("name", ["ffnet_mini", "convnext_atto", "vit_tiny_patch16_224", "xca", "recall"])
def test_networks_take_rectangles(name):
    network = find_network(name, (32, 64))
    assert network.input_size[1:] == (32, 64)
    count(network.model, network.input_size)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("part", "Part"),
        ("activation.part", "Part"),
        ("shift", "Shift"),
        ('{"name": "shift"}', "Shift"),
        (json.dumps({**PRESETS["attention"], "activation": "part"}), "Part"),
    ],
)
def test_operations_of_ones_own_and_mixers_as_json(tmp_path, name, kind):
    (tmp_path / "my_op.py").write_text(OPERATIONS)
    load_module(tmp_path / "my_op.py")
    network = find_network(name, 16)
    assert network.input_size == (64, 16, 16)
    assert kind in {type(part).__name__ for part in network.model.modules()}
    assert network.model(torch.randn(1, 64, 16, 16)).shape == (1, 64, 16, 16)


def test_the_commands_know_them(tmp_path):
    (tmp_path / "my_op.py").write_text(OPERATIONS)
    assert "part at 64×28×28" in launch("cost", "part", "--module", tmp_path / "my_op.py").stdout
    assert "part at 64×8×16" in launch("cost", "part", "--module", tmp_path / "my_op.py", "--size", "8x16").stdout
    assert "not JSON" in launch("cost", "{name: shift}", code=2).stderr


@pytest.mark.parametrize("name", ["ffnet_mini", "resnet10t", "vit_tiny_patch16_224"])
def test_weights_of_another_head_and_other_channels_bring_both(tmp_path, name):
    model = timm.create_model(name, num_classes=7, in_chans=1).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "x.pt")
    network = find_network(name, source=str(tmp_path / "x.pt"))
    channels, *size = network.input_size
    assert channels == 1 == len(network.mean) == len(network.std)
    image = torch.randn(1, channels, *size)
    assert torch.allclose(network.model(image), model(image), atol=1e-5) and model(image).shape == (1, 7)


def test_a_checkpoint_brings_the_network_that_it_is_of(tmp_path):
    train(override(RUN, {"recipe.epochs": 2}), tmp_path / "run", "cpu")
    for file, key in (("last.pt", "model"), ("best.pt", "model")):
        network = find_network(str(tmp_path / "run" / file))
        stored = checkpoint.read(tmp_path / "run" / file)[key]
        assert all(torch.equal(value, stored[name]) for name, value in network.model.state_dict().items())
    released = timm.create_model("ffnet_1", num_classes=3)
    torch.save({"state_dict": released.state_dict()}, tmp_path / "ffnet_1.pth.tar")
    assert find_network(str(tmp_path / "ffnet_1.pth.tar"), 64).model.num_classes == 3
    (tmp_path / "mine.pt").write_bytes((tmp_path / "ffnet_1.pth.tar").read_bytes())
    with pytest.raises(ConfigError, match=r"which network is this.*--model NAME.*--weights FILE.* take NAME alone"):
        find_network(str(tmp_path / "mine.pt"))
