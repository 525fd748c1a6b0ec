"""Ratios of branches against what they must be by construction."""

import pytest
import torch

from metamixer import Backbone, isotropic, override
from metamixer.branches import branch_ratios

IMAGES = torch.randn(8, 3, 16, 16)


def ratios(mixer, init="fan_in", **surroundings):
    model = Backbone(isotropic(2, 32, mixer, patch=2, **surroundings), 5, img_size=16, seed=0, init=init)
    return model, branch_ratios(model, IMAGES)


def test_ratios_that_follow_from_the_definition():
    _, plain = ratios("identity", norm="none", channel_mixer="identity")
    assert plain == pytest.approx(dict.fromkeys(plain, 1.0)) and len(plain) == 4
    _, scaled = ratios("identity", norm="none", channel_mixer="identity", layer_scale=0.1)
    assert scaled == pytest.approx(dict.fromkeys(scaled, 0.1))


def test_a_normalised_branch_is_one_over_its_inputs_spread():
    model, found = ratios("identity", norm="batch", channel_mixer="identity")
    embedded = model.position(model.stem(IMAGES))
    assert found["stages.0.blocks.0.token_mixer"] == pytest.approx(1 / float(embedded.std().detach()), rel=0.05)


def test_a_small_start_makes_small_branches_of_some_mixers_alone():
    found = {}
    for mixer in ("attention", "pooling"):
        for init in ("ffnet", "fan_in"):
            found[mixer, init] = ratios(mixer, init, norm="layer", position="none")[1]["stages.0.blocks.1.token_mixer"]
    assert found["attention", "ffnet"] < 0.1 * found["attention", "fan_in"]
    assert found["pooling", "ffnet"] > 0.3 * found["pooling", "fan_in"]


def test_the_model_is_left_as_it_was():
    model = Backbone(override(isotropic(1, 8, "pooling"), {"norm": "batch"}), 5, img_size=16).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    branch_ratios(model, IMAGES)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training and not any(module._forward_hooks for module in model.modules())
