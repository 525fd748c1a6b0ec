"""Layers fold exactly, small images are first-class, weights start alike where networks are alike."""

import pytest
import torch
from timm.models import reparameterize_model
from torch.nn import functional as F

from metamixer import CONFIGS, Backbone, ConfigError, override
from metamixer.layers import NormConvSkip, spatial_conv


def randomise(model):
    """Values far from their start, so that nothing is zero or one by luck."""
    generator = torch.Generator().manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.8 + 0.2)
    return model.eval()


def test_conv_norm_is_convolution_then_batch_norm():
    conv = randomise(spatial_conv(4, 8, 5, 2, norm=True))
    x = torch.randn(2, 4, 9, 11)
    y = F.conv2d(x, conv.conv.weight, stride=2, padding=2, groups=4)
    n = conv.norm
    expected = F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("large, small", [(3, 1), (5, 3), (7, 3), (7, 5), (13, 1), (13, 5), (31, 9)])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_odd_kernel_folds_with_any_smaller_branch(large, small, stride, norm):
    model = torch.nn.Sequential(randomise(spatial_conv(4, 8, large, stride, norm=norm, small_kernel=small))).double()
    folded = reparameterize_model(model)
    assert isinstance(folded[0], torch.nn.Conv2d) and folded[0].kernel_size == (large, large)
    x = torch.randn(2, 4, 17, 20, dtype=torch.double)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("skip", [True, False])
def test_downsampling_skip_folds_into_one_convolution(skip):
    model = torch.nn.Sequential(randomise(NormConvSkip(6, skip))).double()
    x = torch.randn(2, 6, 5, 5, dtype=torch.double)
    folded = reparameterize_model(model)
    assert isinstance(folded[0], torch.nn.Conv2d)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride, sizes", [(1, (32, 16, 8, 4)), (2, (16, 8, 4, 2)), (4, (8, 4, 2, 1))])
def test_stem_stride_sets_the_size_of_the_maps(stride, sizes):
    config = override(CONFIGS["ffnet_mini"], {"stem_stride": stride})
    _, maps = Backbone(config, 10).eval().forward_intermediates(torch.randn(1, 3, 32, 32))
    assert tuple(m.shape[-1] for m in maps) == sizes == config.map_sizes(32)


def test_odd_sizes_and_one_channel():
    model = Backbone(CONFIGS["ffnet_mini"], 10, in_chans=1)
    assert model(torch.randn(2, 1, 29, 33)).shape == (2, 10)
    assert CONFIGS["ffnet_mini"].map_sizes(29) == (29, 15, 8, 4)


def test_equal_modules_start_equal_whatever_else_differs():
    wide = override(CONFIGS["ffnet_mini"], {"stages.2.depth": 5, "stages.*.token_mixer": {"name": "identity"}})
    one, two = Backbone(CONFIGS["ffnet_mini"], 10), Backbone(wide, 10)
    one.init_weights(7), two.init_weights(7)
    a, b = one.state_dict(), two.state_dict()
    shared = [name for name in a.keys() & b.keys() if name.endswith("weight")]
    assert len(shared) > 20
    assert all(torch.equal(a[name], b[name]) for name in shared)
    two.init_weights(8)
    assert not torch.equal(a["head.fc.weight"], two.state_dict()["head.fc.weight"])


def test_weights_start_as_truncated_normal():
    model = Backbone(CONFIGS["ffnet_mini"], 10)
    model.init_weights(0)
    weight = model.stages[3].blocks[0].channel_mixer.query_key.key.weight.detach()
    assert float(weight.std()) == pytest.approx(0.02, rel=0.02) and weight.mean().abs() < 1e-3
    assert not model.head.fc.bias.any()


def test_a_mixer_for_each_block():
    mixers = [{"name": "identity"}, CONFIGS["ffnet_mini"].stages[2].token_mixer, {"name": "pooling"}]
    config = override(CONFIGS["ffnet_mini"], {"stages.2.token_mixer": mixers})
    names = [type(block.token_mixer).__name__ for block in Backbone(config, 10).stages[2].blocks]
    assert names == ["Identity", "MetaMixer", "Pooling"]
    with pytest.raises(ConfigError, match="lists 2 mixers for 3 blocks"):
        override(CONFIGS["ffnet_mini"], {"stages.2.token_mixer": mixers[:2]})


def test_squeeze_excite_stands_in_every_second_block():
    model = Backbone(override(CONFIGS["ffnet_mini"], {"squeeze_excite": True}), 10)
    kinds = [type(block.squeeze_excite).__name__ for block in model.stages[2].blocks]
    assert kinds == ["SEModule", "Identity", "SEModule"]


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="multiple"):
        override(CONFIGS["ffnet_mini"], {"stages.1.width": 50})
