"""Networks that answer with maps and series: equal to the published counts, whatever mixer is in them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamixer import CONFIGS, ConfigError, isotropic, parse
from metamixer.architecture import Asked
from metamixer.backbone import Backbone
from metamixer.cost import count
from metamixer.dense import build_network
from metamixer.dense.forecast import DLinearConfig, ForecasterConfig, ffnet_forecast
from metamixer.dense.segmentation import SegmenterConfig, ffnet_seg
from metamixer.dense.superresolution import ffnet_sr
from metamixer.fold import fold
from metamixer.initialise import Construction
from metamixer.layers import keep_rows
from metamixer.operation import Site
from metamixer.ops.series import VariableMLP


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(config, asked):
    with torch.device("meta"):
        return build_network(config, asked).eval()


# ---- the counts of the released code


def test_ffnet_seg_has_the_published_size():
    ade = on_meta(ffnet_seg(), Asked(150, 3, (512, 512)))
    assert round(parameters(ade.backbone) / 1e6, 2) == 63.83 and round(parameters(ade) / 1e6, 2) == 68.48
    # the published 74 and 577 G also count norms and activations
    assert count(ade, (3, 512, 512)).macs == pytest.approx(74e9, rel=0.01)
    cityscapes = on_meta(ffnet_seg(5, 1.0), Asked(19, 3, (1024, 1024)))
    assert round(parameters(cityscapes) / 1e6) == 68
    assert count(cityscapes, (3, 1024, 2048)).macs == pytest.approx(577e9, rel=0.03)


@pytest.mark.parametrize("name, millions, gigas", [("ffnet_2", 58, 942), ("ffnet_3", 80, 1010), ("ffnet_4", 113, 1158)])
def test_upernets_have_the_published_size(name, millions, gigas):
    values = {"backbone": CONFIGS[name], "decoder": {"name": "uper"}, "feature_norm": True}
    model = on_meta(parse(SegmenterConfig, values), Asked(150, 3, (512, 512)))
    third = CONFIGS[name].stages[2].width
    auxiliary = 9 * third * 256 + 512 + 257 * 150  # the head that trained beside it
    assert round((parameters(model) + auxiliary) / 1e6) == millions
    assert count(model, (3, 512, 2048)).macs == pytest.approx(gigas * 1e9, rel=0.003)


@pytest.mark.parametrize("depth, millions, gigas", [(36, 1.79, 406.7), (48, 2.38, 541.3)])
def test_ffnet_sr_has_the_published_size(depth, millions, gigas):
    model = on_meta(ffnet_sr(depth), Asked(3, 3, (96, 96)))
    assert round(parameters(model) / 1e6, 2) == millions
    assert round(count(model, (3, 360, 640)).macs / 1e9, 1) == gigas


@pytest.mark.parametrize(
    "variables, expansion, millions",
    [(7, 2, "0.50"), (7, 8, "0.69"), (7, 12, "0.82"), (21, 12, "2.1"), (321, 12, "115"), (862, 12, "726")],
)
def test_the_forecaster_has_the_published_size(variables, expansion, millions):
    """The last row is 725.5 M, which the published table cuts off to 725."""
    found = parameters(on_meta(ffnet_forecast(variables, expansion), Asked(96, variables, (1, 96))))
    assert f"{found / 1e6:.{len(millions.partition('.')[2])}f}" == millions


# ---- the networks by their definition


def small(decoder, **rest):
    values = {"backbone": CONFIGS["ffnet_mini"], "decoder": decoder, **rest}
    return parse(SegmenterConfig, values)


BLOCKS = {"depth": 1, "width": 16, "token_mixer": "ffnified_attention", "channel_mixer": "ffn"}


@pytest.mark.parametrize("size", [(32, 32), (32, 48)], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        small({"name": "fpn", "width": 16}),
        small({"name": "uper", "width": 16}, feature_norm=True),
        small({"name": "ffnet", "blocks": BLOCKS}),
        parse(SegmenterConfig, {"backbone": "test_resnet", "decoder": {"name": "fpn", "width": 16}}),
        parse(SegmenterConfig, {"backbone": "test_vit", "decoder": {"name": "fpn", "width": 16}}),
    ],
    ids=["fpn", "uper", "ffnet", "timm", "vit"],
)
def test_every_pixel_gets_an_answer_and_all_weights_a_gradient(config, size):
    model = build_network(config, Asked(5, 3, size, seed=1))
    x = torch.randn(2, 3, *size)
    y = model(x)
    assert y.shape == (2, 5, *size)
    y.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    again = build_network(config, Asked(5, 3, size, seed=1)).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items() if "weight" in key)
    model.eval()
    torch.testing.assert_close(fold(model)(x), model(x), rtol=1e-3, atol=1e-4)


def test_a_backbone_starts_as_a_classifier_of_its_seed():
    whole = Backbone(CONFIGS["ffnet_mini"], 5, img_size=32, seed=3).state_dict()
    for key, value in (
        build_network(small({"name": "fpn"}), Asked(5, 3, (32, 32), seed=3)).backbone.state_dict().items()
    ):
        assert torch.equal(value, whole[key]) or "running" in key, key


def test_a_backbone_of_timm_whose_maps_are_channels_last_is_read_like_others():
    name = "swin_tiny_patch4_window7_224"
    model = build_network(parse(SegmenterConfig, {"backbone": name, "decoder": {"name": "fpn"}}), Asked(5, 3, (64, 96)))
    x = torch.randn(1, 3, 64, 96)
    for mine, theirs in zip(model.eval().features(x), model.backbone(x), strict=True):
        assert torch.equal(mine, theirs.movedim(-1, 1))
    assert model(x).shape == (1, 5, 64, 96)


def test_what_a_decoder_can_not_read_is_refused():
    one = parse(
        SegmenterConfig, {"backbone": isotropic(1, 8, "identity"), "decoder": {"name": "ffnet", "blocks": BLOCKS}}
    )
    with pytest.raises(ConfigError, match="needs two at least"):
        build_network(one, Asked(5, 3, (8, 8)))
    with pytest.raises(ConfigError, match="no timm model 'no_such_net'"):
        parse(SegmenterConfig, {"backbone": "no_such_net", "decoder": {"name": "fpn"}})


@pytest.mark.parametrize("mixer", [None, "identity", "attention", "pooling"])
def test_super_resolution_adds_to_the_repeated_image(mixer):
    model = build_network(ffnet_sr(2, 32, mixer), Asked(3, 3, (6, 8), seed=0))
    x = torch.rand(1, 3, 6, 8)
    assert model(x).shape == (1, 3, 12, 16)
    nn.init.zeros_(model.head.weight), nn.init.zeros_(model.head.bias)
    torch.testing.assert_close(model(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("mixer", [None, "identity", "attention", "mlp_mixer", "pooling"])
def test_forecasts_keep_a_windows_level_and_spread(mixer):
    config = ffnet_forecast(2, dim=32)
    if mixer:
        blocks = {**config.blocks.to_dict(), "token_mixer": mixer}
        config = parse(ForecasterConfig, {**config.to_dict(), "blocks": blocks})
    model = build_network(config, Asked(12, 2, (1, 24), seed=0)).eval()
    x = torch.randn(3, 2, 1, 24)
    y = model(x)
    assert y.shape == (3, 2, 1, 12)
    scale, shift = torch.tensor([2.0, 5.0]).view(2, 1, 1), torch.tensor([-3.0, 1.0]).view(2, 1, 1)
    torch.testing.assert_close(model(x * scale + shift), y * scale + shift, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fold(model)(x), y, rtol=1e-4, atol=1e-4)


def test_a_window_that_is_not_one_row_high_is_refused():
    with pytest.raises(ConfigError, match="a forecaster's window is 1×steps, not 32×32"):
        build_network(ffnet_forecast(2, dim=4), Asked(12, 2, (32, 32)))


def test_dlinear_is_two_linear_maps_of_a_moving_average_and_the_rest():
    model = build_network(DLinearConfig(kernel_size=3), Asked(4, 1, (1, 5)))
    series = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    trend = torch.tensor([4 / 3, 7 / 3, 14 / 3, 28 / 3, 40 / 3])
    expected = (
        model.trend.weight @ trend + model.trend.bias + model.season.weight @ (series - trend) + model.season.bias
    )
    torch.testing.assert_close(model(series.view(1, 1, 1, 5))[0, 0, 0], expected)


# ---- operations on several variables, and maps one cell high


def test_operations_on_variables_mix_what_they_say():
    """Against loops over variables and channels: 3 variables of 4 channels."""
    x = torch.randn(2, 12, 1, 5)
    mlp = VariableMLP(VariableMLP.Config(name="variable_mlp", variables=3), Site(12, 1, 5)).eval()
    hidden = torch.zeros(2, 4, 6, 5)  # each channel's 3 variables become 6
    for d in range(4):
        for h in range(6):
            row, bias = mlp.fc1.weight[d * 6 + h, :, 0, 0], mlp.fc1.bias[d * 6 + h]
            hidden[:, d, h] = sum(row[m] * x[:, m * 4 + d, 0] for m in range(3)) + bias
    hidden, expected = F.gelu(hidden), torch.zeros(2, 12, 1, 5)
    for m in range(3):  # two of the six belong to each variable, with all channels
        part = hidden[:, :, 2 * m : 2 * m + 2].transpose(1, 2).flatten(1, 2)  # (B, 2·4, N)
        for d in range(4):
            row, bias = mlp.fc2.weight[m * 4 + d, :, 0, 0], mlp.fc2.bias[m * 4 + d]
            expected[:, m * 4 + d, 0] = (row[:, None] * part).sum(1) + bias
    torch.testing.assert_close(mlp(x), expected / (1 + mlp.norm.eps) ** 0.5)


def test_maps_one_cell_high_pay_for_one_row_of_a_kernel():
    for mixer in ("ffnified_attention", "van", "convnext"):
        stage = {"norm": "none", "position": "none"}
        flat = Backbone(isotropic(1, 8, mixer, **stage), 3, 1, img_size=(1, 20), seed=0).double().eval()
        square = Backbone(isotropic(1, 8, mixer, **stage), 3, 1, img_size=(20, 20), seed=0).double().eval()
        rows = {
            key: value[:, :, value.shape[2] // 2 :][:, :, :1] if value.ndim == 4 and value.shape[2] > 1 else value
            for key, value in square.state_dict().items()
        }
        flat.load_state_dict(rows)
        x = torch.randn(2, 1, 1, 20, dtype=torch.double)
        torch.testing.assert_close(flat(x), square(x))
        assert all(conv.kernel_size[0] == 1 for conv in flat.modules() if isinstance(conv, nn.Conv2d))


def test_a_kernel_with_values_of_its_own_keeps_its_middle_row():
    with Construction() as construction:
        model = nn.Sequential(nn.Conv2d(2, 2, 5, padding=4, dilation=2, groups=2))
        model[0].weight.data.normal_()
        weight, bias, x = model[0].weight.clone(), model[0].bias.clone(), torch.randn(1, 2, 1, 9)
        expected = model(x)
        keep_rows(model, construction)
    assert model[0].kernel_size == (1, 5) and torch.equal(model[0].weight, weight[:, :, 2:3])
    model[0].bias.data.copy_(bias)
    torch.testing.assert_close(model(x), expected)
