"""What surrounds the mixers by configuration: where tokens mix, which sizes fit, what stands where."""

import itertools

import pytest
import torch
from timm.layers import LayerNorm2d, RmsNorm2d
from torch import nn

from metamixer import Backbone, ConfigError, isotropic, override
from metamixer.cost import count
from metamixer.operation import Baseline, register
from metamixer.presets import BASELINES, PRESETS
from metamixer.training.optimize import build_optimizer
from metamixer.training.recipe import Recipe

NORMS = {"none": nn.Identity, "batch": nn.BatchNorm2d, "layer": LayerNorm2d, "rms": RmsNorm2d}
POSITIONS = ("none", "learned", "sincos")


def answers(config, images, **arguments):
    """(B, 5, H', W') of a network in eval mode whose every value was moved from its start."""
    model = Backbone(config, 5, in_chans=3, global_pool="", img_size=tuple(images.shape[2:]), **arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()(images)


def reach(config, size=(8, 12), patch=2, cell=(1, 2)):
    """Which patches the answer of a cell depends on: (H', W'), true where its gradient is not zero."""
    images = torch.randn(2, 3, *size, requires_grad=True)
    answers(config, images)[:, :, cell[0], cell[1]].sum().backward()
    return images.grad.abs().sum((0, 1)).unflatten(0, (-1, patch)).unflatten(2, (-1, patch)).sum((1, 3)) > 0


@pytest.mark.parametrize("channel_mixer", ["ffn", "star_relu_ffn", "identity"])
@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize("norm, position", itertools.product(NORMS, POSITIONS))
def test_without_a_token_mixer_a_cell_depends_on_its_own_patch_alone(norm, position, layer_scale, channel_mixer):
    surroundings = {"norm": norm, "position": position, "layer_scale": layer_scale}
    seen = reach(isotropic(2, 8, "identity", channel_mixer, patch=2, **surroundings))
    assert seen.shape == (4, 6) and seen.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "mixer, cells", [("attention", 24), ("mlp_mixer", 24), ({"name": "depthwise", "kernel_size": 3}, 9)]
)
def test_a_token_mixer_reaches_what_it_should(mixer, cells):
    config = override(isotropic(1, 32, mixer, patch=2), {"position": "none"})
    assert int(reach(config, cell=(1, 2)).sum()) == cells


@pytest.mark.parametrize("mixer", [*PRESETS, *BASELINES])
def test_every_mixer_stands_in_an_isotropic_network(mixer):
    model = Backbone(isotropic(1, 64, mixer, patch=4), 7, img_size=32)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model.feature_info == [{"num_chs": 64, "reduction": 4, "module": "stages.0"}]


def test_one_pixel_patches_embed_symbols():
    """A 1×1 stem on one channel a symbol is a table of embeddings, and the position stands beside it."""
    model = Backbone(isotropic(1, 8, "identity", norm="none"), 5, in_chans=6, global_pool="", img_size=4)
    tokens = torch.randint(6, (2, 4, 4))
    embedded = model.position(model.stem(nn.functional.one_hot(tokens, 6).movedim(-1, 1).float()))
    table = model.stem.weight[:, :, 0, 0].T
    expected = (table[tokens] + model.stem.bias).movedim(-1, 1) + model.position.encoding
    torch.testing.assert_close(embedded, expected)


@pytest.mark.parametrize("norm", NORMS)
def test_norms_stand_in_front_of_every_mixer_and_before_the_head(norm):
    model = Backbone(isotropic(2, 8, "identity", norm=norm), 5)
    block = model.stages[0].blocks[1]
    assert type(block.token_norm) is type(block.channel_norm) is NORMS[norm]
    assert type(model.norm) is (NORMS[norm] if norm != "none" else nn.BatchNorm2d)


def test_a_learned_position_starts_from_its_seed_with_its_spread_and_is_not_decayed():
    def start(seed):
        return Backbone(isotropic(1, 64, "identity", position_sd=0.5), 5, img_size=16, seed=seed)

    encoding = start(3).position.encoding.detach()
    assert float(encoding.std()) == pytest.approx(0.5, rel=0.02)
    assert torch.equal(encoding, start(3).position.encoding)
    assert not torch.equal(encoding, start(4).position.encoding)
    assert start(3).no_weight_decay() == {"position.encoding"}


def test_sines_and_cosines_are_vits():
    """dim/4 frequencies from 1 to 1/10000; the row's sines and cosines, then the column's."""
    model = Backbone(isotropic(1, 16, "identity", position="sincos"), 5, img_size=(3, 5))
    row, column = torch.meshgrid(torch.arange(3.0), torch.arange(5.0), indexing="ij")
    frequencies = 10000 ** -(torch.arange(4.0) / 4)
    expected = torch.cat([f(x * w)[None] for x in (row, column) for f in (torch.sin, torch.cos) for w in frequencies])
    found = model.position.encoding[0].flatten(1)
    order = [int((found - line).abs().sum(1).argmin()) for line in expected.flatten(1)]
    assert sorted(order) == list(range(16))
    torch.testing.assert_close(found[order], expected.flatten(1), atol=1e-5, rtol=1e-5)
    assert not list(model.position.parameters())


def test_stages_may_merge_patches_or_keep_their_maps():
    one = isotropic(1, 8, "pooling", patch=2)
    stages = [{**one.to_dict()["stages"][0], "width": width} for width in (8, 12, 20)]
    with pytest.raises(ConfigError, match="depthwise, so each width must be a multiple"):
        override(one, {"stages": stages})
    merging = override(one, {"downsample": "patch_merging", "stages": stages})
    _, maps = Backbone(merging, 5).forward_intermediates(torch.randn(1, 3, 256, 256))
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 128, 128), (12, 64, 64), (20, 32, 32)]
    assert merging.map_sizes(256) == (128, 64, 32)
    with pytest.raises(ConfigError, match="a map is 15 wide, which patches of 2 do not fill"):
        merging.map_sizes(30)
    with pytest.raises(ConfigError, match="without downsampling all stages have one width"):
        override(merging, {"downsample": "none"})
    flat = override(merging, {"stages": stages[:1] * 3, "downsample": "none"})
    assert flat.map_sizes(32) == (16, 16, 16)
    assert [info["reduction"] for info in Backbone(flat, 5).feature_info] == [2, 2, 2]


def test_patch_merging_mixes_only_what_becomes_one_cell():
    stage = isotropic(1, 8, "identity").to_dict()["stages"][0]
    config = override(isotropic(1, 8, "identity", patch=1), {"downsample": "patch_merging", "stages": [stage, stage]})
    assert reach(config, size=(8, 8), patch=1, cell=(1, 2)).nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_a_head_for_every_cell_equals_the_pooled_one_on_each():
    config = isotropic(1, 8, "pooling", position="sincos")
    pooled, cells = Backbone(config, 5, img_size=6).eval(), Backbone(config, 5, img_size=6, global_pool="").eval()
    state = pooled.state_dict()
    state["head.fc.weight"] = state["head.fc.weight"][..., None, None]
    cells.load_state_dict(state)
    images = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(cells(images).mean((2, 3)), pooled(images))


def test_what_it_costs_by_hand():
    """Stem 3·16 a pixel of 4 px patches, FFN 2·4·C² a cell, head once."""
    model = Backbone(isotropic(2, 16, "identity", patch=4), 10, img_size=32)
    assert count(model, (3, 32, 32)).macs == 64 * (48 * 16 + 2 * 2 * 4 * 16**2) + 160


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"stages": []}, "stages: "),
        ({"stem": "conv", "stem_stride": 3}, "stem_stride 3: the stem 'conv' has 1, 2 or 4"),
        ({"stem_stride": 0}, "stem_stride: .*greater than 0"),
        ({"position": "sincos", "stages.0.width": 6}, "needs a multiple of 4 channels, got 6"),
        ({"position_sd": 0}, "position_sd"),
        ({"norm": "group"}, "norm: .*'rms'"),
        ({"downsample": "pool"}, "downsample"),
    ],
)
def test_bad_configurations_are_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        override(isotropic(1, 8, "identity"), changes)
    assert "\n" not in str(error.value)


def test_sizes_that_patches_do_not_fill_are_refused():
    with pytest.raises(ConfigError, match="the image is 30 wide, which patches of 4 do not fill"):
        Backbone(isotropic(1, 8, "identity", patch=4), 5, img_size=30)
    with pytest.raises(AssertionError, match="build the network for this image size"):
        Backbone(isotropic(1, 8, "identity", patch=4), 5, img_size=32)(torch.randn(1, 3, 36, 36))


def test_fan_in_scaled_weights_keep_the_spread_of_their_inputs():
    model = Backbone(isotropic(1, 64, "attention"), 1000, in_chans=48, seed=0, init="fan_in", img_size=4)
    for layer in (model.stem, model.stages[0].blocks[0].channel_mixer.coefficient_value.value, model.head.fc):
        fan_in = layer.weight[0].numel()
        assert float(layer.weight.detach().std()) == pytest.approx(fan_in**-0.5, rel=0.05)
        assert not layer.bias.any()
    assert float(model.position.encoding.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_a_learned_position_is_spared_from_weight_decay():
    model = Backbone(isotropic(1, 8, "identity"), 5, img_size=4)
    spared, decaying = build_optimizer(model, Recipe()).param_groups
    assert any(p is model.position.encoding for p in spared["params"])
    assert all(p.ndim > 1 for p in decaying["params"])


def test_an_operation_names_parameters_that_weight_decay_spares():
    @register
    class Table(Baseline):
        name = "table"

        def __init__(self, config, site):
            super().__init__(config, site)
            self.table, self.map = (torch.nn.Parameter(torch.ones(site.dim, 1, 1)) for _ in range(2))

        def forward(self, x):
            return x * self.table * self.map

        def no_weight_decay(self):
            return {"table"}

    model = Backbone(isotropic(2, 8, "table"), 5, img_size=4)
    spared, decaying = ({id(p) for p in group["params"]} for group in build_optimizer(model, Recipe()).param_groups)
    for block in model.stages[0].blocks:
        assert id(block.token_mixer.table) in spared and id(block.token_mixer.map) in decaying
