"""Ratios of branches against what they must be by construction."""

import pytest
import torch

from metamixer import Backbone, ConfigError, digest, isotropic, override
from metamixer.architecture import Asked
from metamixer.branches import branch_ratios, equalize, noise, token_range
from metamixer.dense import build_network
from metamixer.dense.superresolution import ffnet_sr
from metamixer.presets import BASELINES, PRESETS
from metamixer.recipes import named_run

SIZE = (3, 16, 16)
OTHER = torch.randn(128, *SIZE, generator=torch.Generator().manual_seed(5))


def built(mixer, init="fan_in", **surroundings):
    return Backbone(isotropic(2, 32, mixer, patch=2, **surroundings), 5, img_size=16, seed=0, init=init)


def ratios(mixer, init="fan_in", **surroundings):
    return branch_ratios(built(mixer, init, **surroundings), noise(SIZE))


def test_ratios_that_follow_from_the_definition():
    plain = ratios("identity", norm="none", channel_mixer="identity")
    assert plain == pytest.approx(dict.fromkeys(plain, 1.0)) and len(plain) == 4
    scaled = ratios("identity", norm="none", channel_mixer="identity", layer_scale=0.1)
    assert scaled == pytest.approx(dict.fromkeys(scaled, 0.1))


def test_a_normalised_branch_is_one_over_its_inputs_spread():
    model = built("identity", norm="batch", channel_mixer="identity")
    embedded = model.position(model.stem(noise(SIZE)))
    found = branch_ratios(model, noise(SIZE))
    assert found["stages.0.blocks.0.token_mixer"] == pytest.approx(1 / float(embedded.std().detach()), rel=0.05)


def test_a_small_start_makes_small_branches_of_some_mixers_alone():
    found = {}
    for mixer in ("attention", "pooling"):
        for init in ("ffnet", "fan_in"):
            found[mixer, init] = ratios(mixer, init, norm="layer", position="none")["stages.0.blocks.1.token_mixer"]
    assert found["attention", "ffnet"] < 0.1 * found["attention", "fan_in"]
    assert found["pooling", "ffnet"] > 0.3 * found["pooling", "fan_in"]


@pytest.mark.parametrize("mixer", PRESETS | BASELINES)
def test_every_mixer_starts_at_the_ratio_that_is_asked(mixer):
    model = built(mixer, init="ffnet")
    equalize(model, 0.3, SIZE)
    assert token_range(model, SIZE) == pytest.approx((0.3, 0.3), rel=0.006)
    found = {name: ratio for name, ratio in branch_ratios(model, OTHER).items() if "token" in name}
    assert found == pytest.approx(dict.fromkeys(found, 0.3), rel=0.05)  # on other noise


def test_nothing_but_the_scale_of_a_branch_changes():
    plain, scaled = built("attention"), built("attention")
    equalize(scaled, 0.3, SIZE)
    values = plain.state_dict()
    changed = {key for key, value in scaled.state_dict().items() if not torch.equal(value, values[key])}
    assert changed == {f"stages.0.blocks.{i}.token_mixer.coefficient_value.proj.weight" for i in (0, 1)}
    for key in changed:
        factor = scaled.state_dict()[key] / values[key]
        assert float(factor.std()) < 1e-6 * float(factor.mean())


def test_layer_scale_takes_the_factor_where_there_is_one():
    model = built("pooling", norm="none", layer_scale=1e-6)
    equalize(model, 0.3, SIZE)
    assert token_range(model, SIZE) == pytest.approx((0.3, 0.3), rel=0.006)
    with pytest.raises(ConfigError, match=r"stages\.0\.blocks\.0 ends without weights: give the model a norm or"):
        equalize(built("pooling", norm="none"), 0.3, SIZE)


def test_other_networks_of_blocks_start_at_their_ratio_too():
    model = build_network(ffnet_sr(2, 16, layer_scale=None), Asked(3, 3, (16, 16), seed=0))
    equalize(model, 0.3, SIZE)
    assert token_range(model, SIZE) == pytest.approx((0.3, 0.3), rel=0.006)
    with pytest.raises(ConfigError, match="no token mixers"):
        equalize(torch.nn.Conv2d(3, 3, 1), 0.3, SIZE)


def test_a_run_starts_at_its_ratio_and_other_runs_keep_their_hash():
    run = named_run("recall")
    assert "branch_ratio" not in run.identity()["recipe"]
    equal = override(run, {"recipe.branch_ratio": 0.5})
    assert digest(equal) != digest(run)
    assert token_range(equal.build(), run.data.input_size) == pytest.approx((0.5, 0.5), rel=0.006)


def test_the_model_is_left_as_it_was():
    model = Backbone(override(isotropic(1, 8, "pooling"), {"norm": "batch"}), 5, img_size=16).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    branch_ratios(model, noise(SIZE))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
