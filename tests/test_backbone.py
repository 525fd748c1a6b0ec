"""Layers fold exactly, small images are first-class, weights start alike where networks are alike."""

import numpy as np
import pytest
import timm
import torch
from timm.models import reparameterize_model
from torch import nn
from torch.nn import functional as F

from metamixer import CONFIGS, Backbone, ConfigError, Query, override, register
from metamixer.fold import fold
from metamixer.layers import NormConvSkip, spatial_conv
from metamixer.operation import REGISTRY


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
    a, b = (Backbone(config, 10, seed=7).state_dict() for config in (CONFIGS["ffnet_mini"], wide))
    shared = [name for name in a.keys() & b.keys() if name.endswith("weight")]
    assert len(shared) > 20
    assert all(torch.equal(a[name], b[name]) for name in shared)
    other = Backbone(wide, 10, seed=8).state_dict()
    assert not torch.equal(a["head.fc.weight"], other["head.fc.weight"])


class Pairs(nn.Module):
    """Two plain pairs that fold, and pairs that must not: read twice, run twice, something in between."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.row = nn.Sequential(nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8))
        self.read_twice, self.twice_norm = nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8)
        self.run_twice, self.first, self.second = nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.apart = nn.Sequential(nn.Conv1d(8, 8, 1), nn.ReLU(), nn.BatchNorm1d(8))

    def forward(self, x):
        batch, _, _, _ = x.shape
        x = self.row(self.norm(self.conv(x)).reshape(batch, 8, 36))
        y = self.read_twice(x)
        x = self.twice_norm(y) + y
        x = self.second(self.run_twice(self.first(self.run_twice(x))))
        return self.apart(x)


def test_a_plain_norm_behind_its_convolution_folds():
    model = randomise(Pairs()).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.double)
    folded = fold(model)
    torch.testing.assert_close(folded(x), model(x))
    left = {name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)}
    assert left == {"twice_norm", "first", "second", "apart.2"}


def test_timms_networks_fold_whole():
    model = timm.create_model("mobilenetv3_small_050").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 2)
    x, folded = torch.randn(2, 3, 64, 64), fold(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert (folded(x) - model(x)).norm() < 1e-4 * model(x).norm()


class Ones(nn.Linear):
    """Starts as its class says, by the one function that torch's own start uses too."""

    def reset_parameters(self):
        nn.init.uniform_(self.weight, 1.0, 1.0)
        nn.init.uniform_(self.bias, 1.0, 1.0)


class Gate(Query):
    """Sets a layer's bias in each of the ways that people do, and holds random numbers of its own."""

    name = "gate"

    def __init__(self, config, site):
        super().__init__(config, site)
        self.out_dim = site.dim
        self.table = nn.Parameter(torch.randn(site.dim, 1, 1))
        self.plain, self.by_init, self.by_data, self.by_value = (nn.Conv2d(site.dim, site.dim, 1) for _ in range(4))
        nn.init.constant_(self.by_init.bias, 3.0)
        self.by_data.bias.data.fill_(3.0)
        self.by_value.bias = nn.Parameter(torch.full((site.dim,), 3.0))
        self.wide = nn.Conv2d(site.dim, site.dim, 1)
        self.scaled = nn.Sequential(nn.Linear(2, 2))
        self.ones = Ones(2, 2)
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.wide.weight, std=0.5)
        self.scaled[0].weight.data.mul_(10)


def test_an_operations_own_start_stands_and_follows_from_the_seed(monkeypatch):
    monkeypatch.setitem(REGISTRY, "query", dict(REGISTRY["query"]))
    register(Gate)
    config = override(CONFIGS["ffnet_mini"], {"stages.*.token_mixer.query": "gate"})
    start = Backbone(config, 10, seed=1)
    gate = start.stages[2].blocks[1].token_mixer.query
    for layer in (gate.by_init, gate.by_data, gate.by_value):
        assert (layer.bias == 3).all() and float(layer.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert (gate.ones.weight == 1).all() and (gate.ones.bias == 1).all()
    assert not gate.plain.bias.any() and not gate.wide.bias.any()
    assert float(gate.wide.weight.std()) == pytest.approx(0.5, rel=0.05) and gate.scaled[0].weight.abs().max() > 0.1

    torch.manual_seed(5)  # which has no part in it
    torch.randn(100)
    state, again, other = (Backbone(config, 10, seed=seed).state_dict() for seed in (1, 1, 2))
    key = "stages.2.blocks.1.token_mixer.query."
    for name in ("table", "wide.weight", "scaled.0.weight", "plain.weight"):
        assert torch.equal(state[key + name], again[key + name])
        assert not torch.equal(state[key + name], other[key + name])
    assert abs(np.corrcoef(state[key + "table"].flatten(), other[key + "table"].flatten())[0, 1]) < 0.5
    deeper = Backbone(override(config, {"stages.1.depth": 3}), 10, seed=1).state_dict()
    assert torch.equal(state[key + "table"], deeper[key + "table"])
    blocks = [state[f"stages.2.blocks.{block}.token_mixer.query.table"] for block in (0, 1)]
    assert not torch.equal(*blocks)


def test_weights_start_as_truncated_normal():
    model = Backbone(CONFIGS["ffnet_mini"], 10, seed=0)
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
