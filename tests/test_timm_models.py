"""Mixers in timm's networks: found, replaced, counted, trained; equal where the mixer copies what it replaces."""

import pytest
import timm
import torch
from small import RUN
from torch import nn

from metamixer import ConfigError, digest, override
from metamixer.architecture import Asked
from metamixer.config import parse
from metamixer.cost import by_layer, count
from metamixer.cost_table import by_slot
from metamixer.presets import preset
from metamixer.timm_models import InPlace, TimmConfig, build_timm, replace_mixers
from metamixer.training.run_config import RunConfig
from sweeps import Grid, Variant, make_plan
from sweeps.plan_table import print_plan
from sweeps.questions import LoadedGrid


def attention(head_dim):
    return preset("attention", query_key={"name": "scaled_dot", "head_dim": head_dim})


VIT = {"depth": 2, "patch_size": 4}  # so few blocks and so small patches that a CPU is quick
# network, arguments, and what its token mixers are copies of
NETWORKS = {
    "vit_tiny_patch16_224": (
        {**VIT, "img_size": 16},
        attention(64),
    ),
    "deit3_small_patch16_224": (
        {**VIT, "img_size": 16},
        attention(64),
    ),
    "swin_tiny_patch4_window7_224": (
        {"depths": (1, 1, 1, 1), "img_size": 64, "window_size": 2},
        attention(32),
    ),
    "convnext_atto": ({"depths": (1, 1, 1, 1)}, {"name": "depthwise", "kernel_size": 7}),
    "poolformerv2_s12": ({}, "pooling"),
    "caformer_s18": ({}, attention(32)),
}


def build(name):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **NETWORKS[name][0]).eval()


def size(name):
    side = NETWORKS[name][0].get("img_size", 64)
    return 3, side, side


def copy(old, new):
    """Give a mixer the weights of the module that it replaced."""
    mixer = new.mixer
    if isinstance(old, nn.Conv2d):
        mixer.conv.load_state_dict(old.state_dict())
    elif hasattr(old, "qkv"):
        bias = old.qkv.bias if old.qkv.bias is not None else torch.zeros(old.qkv.out_features)
        layers = mixer.query.proj, mixer.query_key.key, mixer.coefficient_value.value
        for layer, weight, own in zip(layers, old.qkv.weight.chunk(3), bias.chunk(3), strict=True):
            layer.load_state_dict({"weight": weight[:, :, None, None], "bias": own})
        bias = old.proj.bias if old.proj.bias is not None else torch.zeros(old.proj.out_features)
        mixer.coefficient_value.proj.load_state_dict({"weight": old.proj.weight[:, :, None, None], "bias": bias})


@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_of_what_was_replaced_changes_no_answer_and_any_other_mixer_trains(name):
    model, mixer = build(name), NETWORKS[name][1]
    where = "stages.[23].*" if name == "caformer_s18" else "*"  # its first stages have separable convolutions
    before = dict(model.named_modules())
    for module in before.values():
        if hasattr(module, "relative_position_bias_table"):
            nn.init.zeros_(module.relative_position_bias_table)
    x = torch.randn(2, *size(name))
    answer = model(x)
    rest = {key: value.clone() for key, value in model.state_dict().items()}
    names = replace_mixers(model, where, mixer, size(name))
    assert len(names) == sum(isinstance(module, InPlace) for module in model.modules()) >= 2
    for key, value in model.state_dict().items():
        assert any(key.startswith(each) for each in names) or value.equal(rest[key]), key
    with torch.no_grad():
        for each in names:
            copy(before[each], model.get_submodule(each))
    torch.testing.assert_close(model(x), answer, rtol=1e-4, atol=1e-5)

    other = build(name)
    replace_mixers(other, "*", "xca" if hasattr(other, "num_prefix_tokens") else "ffnified_attention", size(name))
    assert count(other, size(name)).macs > 0
    other.train()(x).square().mean().backward()
    assert all(parameter.grad is not None for key, parameter in other.named_parameters() if ".mixer." in key)


def test_costs_of_such_a_network_are_told_apart():
    model = timm.create_model("convnext_atto")
    replace_mixers(model, "stages.2.*", "ffnified_attention", (3, 32, 32))
    parts = by_slot(by_layer(model, (3, 32, 32)))
    convs = [module for name, module in model.named_modules() if name.endswith("conv_dw")]
    places = {40: 64, 80: 16, 320: 1}  # tokens of the stages with so many channels
    own = sum(49 * places[conv.out_channels] * conv.out_channels for conv in convs if isinstance(conv, nn.Conv2d))
    assert parts["token: slots at once"].macs == own
    assert parts["token: query"].macs == 6 * 4 * 160**2  # six blocks, 2×2 tokens
    assert parts["token: query-key"].macs == parts["token: coefficient-value"].macs == 6 * 4 * 49 * 160
    assert {"stem", "channel: mlp", "downsampling", "head"} <= parts.keys()
    assert parts["head"].macs == 320 * 1000


def test_a_map_without_a_class_token_takes_a_convolution():
    arguments = {**VIT, "class_token": False, "global_pool": "avg", "img_size": 16}
    model = timm.create_model("vit_tiny_patch16_224", **arguments)
    replace_mixers(model, "blocks.1.attn", "ffnified_attention", (3, 16, 16))
    assert model.get_submodule("blocks.1.attn").size == (4, 4)
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "where", "mixer", "line"),
    [
        ("vit_tiny_patch16_224", "*", "ffnified_attention", r"blocks\.0\.attn takes 1 class or other tokens"),
        ("vit_tiny_patch16_224", "stages.*", "pooling", r"fits no token mixer .* there are blocks\.0\.attn, blocks"),
        (
            "vit_tiny_patch16_224",
            "patch_embed.proj",
            "pooling",
            r"patch_embed\.proj makes \(192, 4, 4\) of \(3, 16, 16\)",
        ),
        (
            "vit_tiny_patch16_224",
            "*",
            attention(7),
            r"blocks\.0",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(name, where, mixer, line):
    with pytest.raises(ConfigError, match=line) as error:
        replace_mixers(build(name), where, mixer, size(name))
    assert "\n" not in str(error.value)


def run(**model):
    arguments = {**VIT, "class_token": False, "global_pool": "avg"}
    content = {"timm": "vit_tiny_patch16_224", "arguments": arguments, **model}
    return parse(RunConfig, {**RUN.to_dict(), "model": content})


def test_a_run_of_such_a_network_follows_from_its_seed():
    one, other = run(replace={"*": "pooling"}), run(replace={"*": "attention"})
    assert digest(one) != digest(other) and digest(run(replace={"*": "pooling"})) == digest(one)
    changed = override(one, {"model.replace": {"*": "attention"}})
    assert changed == other
    first, again = (changed.build().state_dict() for _ in range(2))
    assert all(first[key].equal(again[key]) for key in first)
    later = override(changed, {"seed": 1}).build().state_dict()
    assert not later["blocks.0.attn.mixer.query.proj.weight"].equal(first["blocks.0.attn.mixer.query.proj.weight"])
    plain = one.build().state_dict()  # what the two have in common starts alike
    assert all(plain[key].equal(first[key]) for key in plain)


def test_a_plan_of_such_networks_claims_no_branches(tmp_path, capsys):
    grid = Grid(
        bases={"digits": run()},
        base="own",
        variants={"own": Variant(), "pool": Variant(changes={"model.replace": {"*": "pooling"}})},
    )
    print_plan(make_plan(LoadedGrid("mine", "?", grid), tmp_path))
    shown = capsys.readouterr().out
    assert "branch" in shown and " – " in shown and "nan" not in shown


def test_what_is_not_replaced_keeps_pretrained_weights(tmp_path):
    trained = build("vit_tiny_patch16_224").state_dict()
    torch.save(trained, tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 5}
    arguments = {**VIT, "pretrained": True, "pretrained_cfg_overlay": overlay}
    config = {"timm": "vit_tiny_patch16_224", "arguments": arguments, "replace": {"blocks.0.attn": "attention"}}
    found = build_timm(parse(TimmConfig, config), Asked(5, 3, (16, 16))).state_dict()
    kept = [key for key in trained if not key.startswith("blocks.0.attn")]
    assert len(kept) > 20 and all(trained[key].equal(found[key]) for key in kept)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ({"timm": "vit_tyni"}, "no timm model 'vit_tyni'"),
        ({"replace": {"*": "poling"}}, "no mixer 'poling'"),
        ({"arguments": {"heads": 3}}, "timm model 'vit_tiny_patch16_224': .*heads"),
    ],
)
def test_what_a_configuration_gets_wrong_is_one_line(model, line):
    with pytest.raises(ConfigError, match=line) as error:
        run(**model).build()
    assert "\n" not in str(error.value)
