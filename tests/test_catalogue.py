"""Every preset and baseline against an independent reference: timm's module, weights copied, or a naive loop.

References return what the mixer should; they run in double precision on random weights and statistics. Those that
are not here are in `benchmarks/authors.py`.
"""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from timm.layers import GatedMlp, Mlp
from timm.models import convnext, efficientvit_mit, fastvit, mambaout, metaformer, starnet, swiftformer, xcit
from timm.models.mlp_mixer import SpatialGatingUnit
from timm.models.vision_transformer import Attention
from torch import nn
from torch.nn import functional as F

from benchmarks.authors import AUTHORS
from metamixer import Backbone, Baseline, ConfigError, Site, StageConfig, build_mixer, override, register, resolve_mixer
from metamixer.architecture import hybrid
from metamixer.checks import find
from metamixer.ffnet import CONFIGS
from metamixer.operation import REGISTRY
from metamixer.presets import BASELINES, PRESETS, preset
from metamixer.slots import FAST_PATHS

DIM = 48  # 8/3 of it is whole, as MambaOut's rounding needs, and it makes 3 heads of 16
HEAD = 16
SIZES = [(8, 8), (7, 5)]
REFERENCES = {}


def reference(name):
    def add(function):
        assert name not in REFERENCES
        REFERENCES[name] = function
        return function

    return add


def randomise(module):
    """Values far from their start, so that nothing is zero or one by luck."""
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point() and not name.endswith("matrix"):
            tensor.normal_(0, 0.4 if tensor.ndim > 1 else 0.7)
    return module


def config(name):
    """The preset, with heads of half the channels, to have several at the width of the tests."""
    resolved = resolve_mixer(PRESETS.get(name) or BASELINES[name])
    if name in BASELINES:
        return resolved
    slots = resolved.to_dict()
    for slot, wide in (("query_key", 32), ("coefficient_value", 64)):
        wide = wide // 2 if name == "differential_attention" else wide
        if slots[slot].get("head_dim") == wide:
            slots[slot]["head_dim"] = wide // 2
    return resolve_mixer(slots)


def build(name, size):
    torch.manual_seed(len(name))
    return randomise(build_mixer(config(name), Site(DIM, *size))).double().eval()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", [*PRESETS, *BASELINES])
def test_agrees_with_reference(name, size):
    mixer = build(name, size)
    x = torch.randn(2, DIM, *size, dtype=torch.double)
    with torch.no_grad():
        y = mixer(x)
        expected = REFERENCES[name](mixer, x) if name in REFERENCES else AUTHORS[name](mixer)(x)
    assert y.shape == x.shape
    assert (y - expected).norm() / expected.norm() < 1e-5
    assert name == "identity" or (y - x).norm() > 1e-2 * x.norm()


def test_every_mixer_has_a_reference():
    assert REFERENCES.keys() | AUTHORS.keys() == PRESETS.keys() | BASELINES.keys()
    assert not PRESETS.keys() & BASELINES.keys()


# ---- helpers for references


def tokens(x):
    return x.flatten(2).transpose(1, 2)  # (B, N, C)


def to_map(y, x):
    return y.transpose(1, 2).reshape(x.shape)


def copy(target, *sources):
    """Weights and biases of 1×1 convolutions or linear layers, stacked along the outputs, into one layer."""
    target.weight.copy_(torch.cat([s.weight for s in sources]).reshape(target.weight.shape))
    if target.bias is not None:
        target.bias.copy_(torch.cat([s.bias for s in sources]))


def conv1(layer, x):
    return torch.einsum("oi,bihw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]


def depthwise(layer, x, dilation=1):
    """Depthwise convolution as a loop over the kernel."""
    kh, kw = layer.weight.shape[2:]
    ph, pw = dilation * (kh // 2), dilation * (kw // 2)
    padded, y = F.pad(x, [pw, pw, ph, ph]), layer.bias[:, None, None].expand_as(x).clone()
    for i in range(kh):
        for j in range(kw):
            shifted = padded[:, :, i * dilation :, j * dilation :][..., : x.shape[2], : x.shape[3]]
            y += layer.weight[:, 0, i, j, None, None] * shifted
    return y


def batch_norm(norm, x):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def rep_depthwise(branched, x):
    y = 0
    for branch in (branched.large, branched.small):
        conv = F.conv2d(x, branch.conv.weight, padding=branch.conv.weight.shape[-1] // 2, groups=x.shape[1])
        y = y + batch_norm(branch.norm, conv)
    return y


def heads(x, dim=HEAD):
    """(B, C, H, W) → (B, heads, N, d)."""
    return tokens(x).unflatten(-1, (-1, dim)).transpose(1, 2)


def qkv(mixer, x):
    return conv1(mixer.query.proj, x), conv1(mixer.query_key.key, x), conv1(mixer.coefficient_value.value, x)


# ---- dynamic keys, dynamic values


@reference("attention")
def _(mixer, x):
    timm = Attention(DIM, num_heads=DIM // HEAD, qkv_bias=True).double()
    copy(timm.qkv, mixer.query.proj, mixer.query_key.key, mixer.coefficient_value.value)
    copy(timm.proj, mixer.coefficient_value.proj)
    return to_map(timm(tokens(x)), x)


def pairs(mixer, x, function):
    """Attention with a function of each query's scores, token by token."""
    q, k, v = (heads(t) for t in qkv(mixer, x))
    y = torch.zeros_like(q)
    for i in range(q.shape[2]):
        scores = torch.stack([(q[:, :, i] * k[:, :, j]).sum(-1) for j in range(k.shape[2])], -1) / HEAD**0.5
        y[:, :, i] = torch.einsum("bhj,bhjd->bhd", function(scores), v)
    return conv1(mixer.coefficient_value.proj, to_map(y.transpose(1, 2).flatten(2), x))


@reference("relu_attention")
def _(mixer, x):
    return pairs(mixer, x, lambda scores: scores.clamp(min=0) / scores.shape[-1])


@reference("sigmoid_attention")
def _(mixer, x):
    return pairs(mixer, x, lambda scores: 1 / (1 + scores.shape[-1] * torch.exp(-scores)))


@reference("linear_attention")
def _(mixer, x):
    timm = efficientvit_mit.LiteMLA(DIM, DIM, dim=HEAD, scales=(), use_bias=True, norm_layer=(None, None)).double()
    layers = (mixer.query.proj, mixer.query_key.key, mixer.coefficient_value.value)
    # timm keeps q, k and v of a head together
    for what in ("weight", "bias"):
        split = [getattr(layer, what).unflatten(0, (-1, HEAD)) for layer in layers]
        getattr(timm.qkv.conv, what).copy_(torch.stack(split, 1).flatten(0, 2))
    copy(timm.proj.conv, mixer.coefficient_value.proj)
    return timm(x)


@reference("hydra_attention")
def _(mixer, x):
    q, k, v = (tokens(t) for t in qkv(mixer, x))
    q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    return conv1(mixer.coefficient_value.proj, to_map(q * torch.einsum("bnc,bnc->bc", k, v)[:, None], x))


def neighbourhood(mixer, x, values):
    """Softmax over the neighbours on the map, by position; values(channels, offset, row, column) → (B, d)."""
    q, k = conv1(mixer.query.proj, x), conv1(mixer.query_key.key, x)
    (height, width), bias, y = x.shape[2:], mixer.query_key.bias, torch.zeros_like(x)
    for head in range(DIM // HEAD):
        c = slice(head * HEAD, (head + 1) * HEAD)
        for row in range(height):
            for col in range(width):
                scores, found = [], []
                for offset in range(49):
                    i, j = row + offset // 7 - 3, col + offset % 7 - 3
                    if 0 <= i < height and 0 <= j < width:
                        score = (q[:, c, row, col] * k[:, c, i, j]).sum(-1) / HEAD**0.5
                        scores.append(score + bias[head, offset, 0, 0])
                        found.append(values(c, offset, i, j))
                shares = torch.stack(scores, -1).softmax(-1)
                y[:, c, row, col] = (shares[..., None] * torch.stack(found, 1)).sum(1)
    return conv1(mixer.coefficient_value.proj, y)


@reference("neighbourhood_attention")
def _(mixer, x):
    v = conv1(mixer.coefficient_value.value, x)
    return neighbourhood(mixer, x, lambda c, offset, i, j: v[:, c, i, j])


@reference("xca")
def _(mixer, x):
    timm = xcit.XCA(DIM, num_heads=DIM // HEAD, qkv_bias=True).double()
    copy(timm.qkv, mixer.query.proj, mixer.query_key.key, mixer.coefficient_value.value)
    copy(timm.proj, mixer.coefficient_value.proj)
    timm.temperature.copy_(mixer.query_key.temperature)
    return to_map(timm(tokens(x)), x)


def unheads(y, x):
    """(B, heads, N, d) → (B, C, H, W)."""
    return to_map(y.transpose(1, 2).flatten(2), x)


def distance(i, j, x):
    width = x.shape[3]
    return abs(i // width - j // width) + abs(i % width - j % width)


@reference("rmt")
def _(mixer, x):
    q, k, v = (heads(t) for t in qkv(mixer, x))
    n, number = q.shape[2], q.shape[1]
    scores = q @ k.transpose(-2, -1) / HEAD**0.5
    for head in range(number):
        decay = 1 - 2.0 ** (-2 - 4 * head / number)
        for i in range(n):
            for j in range(n):
                scores[:, head, i, j] += math.log(decay ** distance(i, j, x))
    value, y = mixer.coefficient_value, unheads(scores.softmax(-1) @ v, x)
    return conv1(value.proj, y + depthwise(value.local, unheads(v, x)))


@reference("slide_attention")
def _(mixer, x):
    q, k, v = qkv(mixer, x)
    (height, width), key, y = x.shape[2:], mixer.query_key, torch.zeros_like(x)

    def shifted(t, layer, c, row, col, offset, i, j):
        """The fixed shift, and the learned kernel of the offset around the position."""
        window = F.pad(t, [1] * 4)[:, c, row : row + 3, col : col + 3]
        learned = (window * layer.weight[offset::9, 0]).sum((-2, -1)) + layer.bias[offset::9]
        return t[:, c, i, j] + learned

    for head in range(DIM // HEAD):
        c = slice(head * HEAD, (head + 1) * HEAD)
        for row in range(height):
            for col in range(width):
                scores, found = [], []
                for offset in range(9):
                    i, j = row + offset // 3 - 1, col + offset % 3 - 1
                    if 0 <= i < height and 0 <= j < width:
                        place = (c, row, col, offset, i, j)
                        keys = shifted(k, key.shifted.learned, *place) + key.bias[head, offset, 0, 0]
                        scores.append((q[:, c, row, col] * keys).sum(-1) / HEAD**0.5)
                        found.append(shifted(v, mixer.coefficient_value.shifted.learned, *place))
                shares = torch.stack(scores, -1).softmax(-1)
                y[:, c, row, col] = (shares[..., None] * torch.stack(found, 1)).sum(1)
    return conv1(mixer.coefficient_value.proj, y)


@reference("inline")
def _(mixer, x):
    q, k, v = (heads(t) for t in qkv(mixer, x))
    n, y = q.shape[2], torch.zeros_like(q)
    for i in range(n):
        scores = torch.einsum("bhd,bhjd->bhj", q[:, :, i], k) / HEAD**0.5
        coefficients = scores / n + (1 - scores.mean(-1, keepdim=True)) / n
        torch.testing.assert_close(coefficients.sum(-1), torch.ones_like(coefficients[..., 0]))
        y[:, :, i] = torch.einsum("bhj,bhjd->bhd", coefficients, v)
    value, y, v = mixer.coefficient_value, unheads(y, x), unheads(v, x)
    first, second = (layer for layer in value.kernel.make if isinstance(layer, nn.Conv2d))
    mean = x.mean((2, 3)).unflatten(1, (3, -1))  # (B, heads, d)
    hidden = torch.einsum("hoi,bhi->bho", first.weight.reshape(3, HEAD, HEAD), mean) + first.bias.reshape(3, HEAD)
    kernels = torch.einsum("hoi,bhi->bho", second.weight.reshape(3, -1, HEAD), F.gelu(hidden))
    kernels = (kernels + second.bias.reshape(3, -1)).reshape(len(x), DIM, 1, 3, 3)
    local = [F.conv2d(v[b : b + 1], kernels[b], padding=1, groups=DIM) for b in range(len(x))]
    return conv1(value.proj, y + torch.cat(local))


def delta_rule(mixer, x, decay):
    """The recurrence over the raster: decay, read, correct, write, answer."""
    key, value = mixer.query_key, mixer.coefficient_value
    q, k, v = (heads(F.silu(t)) for t in qkv(mixer, x))
    q, k = F.normalize(q, dim=-1) / HEAD**0.5, F.normalize(k, dim=-1)
    beta, y = conv1(key.beta, x).sigmoid().flatten(2), torch.zeros_like(v)
    state = torch.zeros(*q.shape[:2], HEAD, HEAD, dtype=x.dtype)
    for i in range(q.shape[2]):
        state = state * decay[:, :, i, None, None]
        error = v[:, :, i] - torch.einsum("bhk,bhkv->bhv", k[:, :, i], state)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, :, i], error * beta[:, :, i, None])
        y[:, :, i] = torch.einsum("bhk,bhkv->bhv", q[:, :, i], state)
    y = y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * value.norm.weight[:, 0]
    y = unheads(y, x)
    return conv1(value.proj, y if value.gate is None else y * F.silu(conv1(value.gate[0], x)))


@reference("delta_net")
def _(mixer, x):
    return delta_rule(mixer, x, torch.ones(len(x), 3, x[0, 0].numel(), dtype=x.dtype))


@reference("gated_delta_net")
def _(mixer, x):
    step = F.softplus(conv1(mixer.query_key.step, x)).flatten(2)
    return delta_rule(mixer, x, (-mixer.query_key.rate.exp()[:, 0] * step).exp())


# ---- static keys, static values


def ffn(mixer, x, act=nn.GELU):
    timm = Mlp(DIM, 4 * DIM, act_layer=act).double()
    copy(timm.fc1, mixer.query_key.key)
    copy(timm.fc2, mixer.coefficient_value.value)
    if act is metaformer.StarReLU:
        timm.act.load_state_dict(mixer.activation.function.state_dict())
    return to_map(timm(tokens(x)), x)


REFERENCES["ffn"] = ffn
REFERENCES["squared_relu_ffn"] = partial(ffn, act=metaformer.SquaredReLU)
REFERENCES["star_relu_ffn"] = partial(ffn, act=metaformer.StarReLU)


@reference("convnext")
def _(mixer, x):
    timm = convnext.ConvNeXtBlock(DIM, ls_init_value=None).double()
    copy(timm.conv_dw, mixer.query.proj)
    timm.norm.load_state_dict(mixer.query.ending[0].state_dict())
    copy(timm.mlp.fc1, mixer.query_key.key)
    copy(timm.mlp.fc2, mixer.coefficient_value.value)
    return timm(x) - x


@reference("convnext_ffn")
def _(mixer, x):
    hidden = F.gelu(conv1(mixer.query_key.key, rep_depthwise(mixer.query.proj, x)))
    return conv1(mixer.coefficient_value.value, hidden)


@reference("ffnified_attention")
def _(mixer, x):
    proj = mixer.query.proj
    q = batch_norm(proj.norm, torch.einsum("oi,bihw->bohw", proj.conv.weight[:, :, 0, 0], x))
    return rep_depthwise(mixer.coefficient_value.value, F.gelu(rep_depthwise(mixer.query_key.key, q)))


@reference("mlp_mixer")
def _(mixer, x):
    n = x.shape[2] * x.shape[3]
    timm = Mlp(n, 2 * n).double()
    copy(timm.fc1, mixer.query_key)
    copy(timm.fc2, mixer.coefficient_value)
    return timm(x.flatten(2)).reshape(x.shape)


@reference("external_attention")
def _(mixer, x):
    q = tokens(conv1(mixer.query.proj, x))
    keys, values = mixer.query_key.key.weight[:, :, 0, 0], mixer.coefficient_value.value.weight[:, :, 0, 0]
    assert keys.shape == (64, DIM)
    shares = (q @ keys.T).exp()
    shares = shares / shares.sum(1, keepdim=True)
    shares = shares / shares.sum(2, keepdim=True)
    return to_map(shares @ values.T, x)


# ---- static keys, dynamic values


@reference("mambaout")
def _(mixer, x):
    timm = mambaout.GatedConvBlock(DIM, norm_layer=lambda dim, **_: nn.Identity()).double()
    value = mixer.coefficient_value
    copy(timm.fc1, mixer.query_key.key, value.value)
    copy(timm.conv, value.conv.conv)
    copy(timm.fc2, value.proj)
    return timm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) - x


@reference("starnet")
def _(mixer, x):
    timm = starnet.Block(DIM, mlp_ratio=4).double().eval()
    value = mixer.coefficient_value
    for target, source in ((timm.dwconv, mixer.query.proj), (timm.g, value.proj[0])):
        target.conv.weight.copy_(source.conv.weight)
        target.conv.bias.zero_()
        target.bn.load_state_dict(source.norm.state_dict())
    copy(timm.f1.conv, mixer.query_key.key)
    copy(timm.f2.conv, value.value)
    copy(timm.dwconv2.conv, value.proj[1])
    return timm(x) - x


@reference("van")
def _(mixer, x):
    u = F.gelu(conv1(mixer.query.proj, x))
    near, far, mix = mixer.query_key.key
    return conv1(mixer.coefficient_value.proj, u * conv1(mix, depthwise(far, depthwise(near, u), dilation=3)))


@reference("segnext")
def _(mixer, x):
    u, key = F.gelu(conv1(mixer.query.proj, x)), mixer.query_key
    near = depthwise(key.key, u)
    strips = [depthwise(second, depthwise(first, near)) for first, second in key.strips]
    assert [tuple(layer.weight.shape[2:]) for pair in key.strips for layer in pair] == [
        (1, 7), (7, 1), (1, 11), (11, 1), (1, 21), (21, 1),
    ]  # fmt: skip
    return conv1(mixer.coefficient_value.proj, u * conv1(key.mix, near + sum(strips)))


@reference("conv2former")
def _(mixer, x):
    a = depthwise(mixer.query_key.key, F.gelu(conv1(mixer.query.proj, x)))
    assert mixer.query_key.key.weight.shape[-1] == 11
    return conv1(mixer.coefficient_value.proj, a * conv1(mixer.coefficient_value.value, x))


@reference("moganet")
def _(mixer, x):
    query, value = mixer.query, mixer.coefficient_value
    q = conv1(query.proj, x)
    q = F.silu(q + query.scale.scale * (q - q.mean((2, 3), keepdim=True)))
    v = depthwise(value.near, q)
    a, b = DIM // 8, DIM // 2
    v = torch.cat([v[:, :a], depthwise(value.middle, v[:, a:b], 2), depthwise(value.far, v[:, b:], 3)], 1)
    return conv1(value.proj, F.silu(conv1(mixer.query_key.key, q)) * F.silu(conv1(value.mix, v)))


@reference("gmlp")
def _(mixer, x):
    gate = partial(SpatialGatingUnit, seq_len=x.shape[2] * x.shape[3], norm_layer=partial(nn.LayerNorm, eps=1e-6))
    timm = GatedMlp(DIM, 6 * DIM, gate_layer=gate).double()
    copy(timm.fc1, mixer.coefficient_value.value, mixer.query.proj)
    timm.gate.norm.load_state_dict(mixer.query.ending[1].state_dict())
    copy(timm.gate.proj, mixer.query_key)
    copy(timm.fc2, mixer.coefficient_value.proj)
    return to_map(timm(tokens(x)), x)


@reference("lsnet")
def _(mixer, x):
    def conv_norm(layer, t):
        weight = layer.conv.weight
        return batch_norm(layer.norm, F.conv2d(t, weight, padding=weight.shape[-1] // 2, groups=layer.conv.groups))

    large, point, _, last, norm = mixer.query_key.key
    hidden = F.relu(conv_norm(point, conv_norm(large, F.relu(conv_norm(mixer.query.proj, x)))))
    scores = F.group_norm(conv1(last, hidden), DIM // 8, norm.weight, norm.bias)
    weights = scores.reshape(len(x), DIM // 8, 9, *x.shape[2:])
    padded, y = F.pad(x, [1] * 4), torch.zeros_like(x)
    for channel in range(DIM):
        for offset in range(9):
            i, j = divmod(offset, 3)
            window = padded[:, channel, i : i + x.shape[2], j : j + x.shape[3]]
            y[:, channel] += weights[:, channel // 8, offset] * window
    return y


# ---- dynamic keys, static values


@reference("swiftformer")
def _(mixer, x):
    timm = swiftformer.EfficientAdditiveAttention(DIM, DIM).double()
    copy(timm.to_query, mixer.query.proj)
    copy(timm.to_key, mixer.query_key.key)
    timm.w_g.copy_(mixer.query_key.pool.weight.reshape(DIM, 1))
    copy(timm.proj, mixer.coefficient_value.value)
    copy(timm.final, mixer.coefficient_value.proj)
    return timm(x)


@reference("relative_attention")
def _(mixer, x):
    table = mixer.coefficient_value.value.weight[:, :, 0, 0]  # (C, k²)
    return neighbourhood(mixer, x, lambda c, offset, i, j: table[c, offset].expand(x.shape[0], -1))


# ---- baselines


@reference("identity")
def _(mixer, x):
    return x


@reference("pooling")
def _(mixer, x):
    return metaformer.Pooling(3)(x)


@reference("depthwise")
def _(mixer, x):
    return depthwise(mixer.conv, x)


@reference("rep_mixer")
def _(mixer, x):
    timm = fastvit.RepMixer(DIM, 3, layer_scale_init_value=None).double().eval()
    branches = (
        (timm.mixer.conv_kxk[0], mixer.large),
        (timm.mixer.conv_scale, mixer.small),
    )
    for target, source in branches:
        target.conv.weight.copy_(source.conv.weight)
        target.bn.load_state_dict(source.norm.state_dict(), strict=False)
    timm.mixer.identity.load_state_dict(mixer.identity.state_dict())
    timm.norm.identity.load_state_dict(mixer.subtracted.state_dict())
    return timm(x) - x


@reference("random_mixing")
def _(mixer, x):
    matrix = mixer.matrix
    torch.testing.assert_close(matrix.sum(1), torch.ones_like(matrix[0]), rtol=1e-5, atol=1e-5)
    assert not list(mixer.parameters())
    return torch.einsum("mn,bcn->bcm", matrix, x.flatten(2)).reshape(x.shape)


@reference("global_filter")
def _(mixer, x):
    """By matrices of the discrete Fourier transform; of the real one's columns all but two stand for a pair."""
    height, width = x.shape[2:]

    def fourier(n):
        place = torch.arange(n, dtype=torch.double)
        return torch.exp(-2j * math.pi * place[:, None] * place / n) / n**0.5

    rows, columns = fourier(height), fourier(width)[:, : width // 2 + 1]
    spectrum = torch.einsum("bchw,hu,wv->bcuv", x.cdouble(), rows, columns)
    spectrum = spectrum * torch.complex(*mixer.filter.weight.unbind(-1))
    pairs = torch.tensor([1 if v in (0, width / 2) else 2 for v in range(width // 2 + 1)])
    return torch.einsum("bcuv,hu,wv,v->bchw", spectrum, rows.conj(), columns.conj(), pairs.cdouble()).real


@reference("recursive_pyramid")
def _(mixer, x):
    def conv(layer, t, stride=1):
        return F.conv2d(t, layer.weight, stride=stride, padding=2, groups=DIM)

    middle = conv(mixer.down, x, 2)
    smallest = conv(mixer.down, middle, 2)
    up = partial(F.interpolate, mode="bilinear")
    first, second, third = mixer.convs
    y = middle + up(conv(first, smallest), middle.shape[2:])
    return conv(third, x + up(conv(second, y), x.shape[2:]))


# ---- names


def test_presets_stand_where_mixers_do():
    stage = StageConfig(depth=2, width=32, token_mixer=["xca", "pooling"], channel_mixer="ffn")
    assert stage.mixers(0)[0] == resolve_mixer(PRESETS["xca"])
    assert stage.mixers(1) == (resolve_mixer(BASELINES["pooling"]), resolve_mixer("ffn"))
    hybrid = override(CONFIGS["ffnet_mini"], {"stages.-1.token_mixer": "attention"})
    model = Backbone(hybrid, num_classes=10, img_size=32)
    assert type(model.stages[3].blocks[0].token_mixer) in FAST_PATHS.values()


def test_hybrids_have_attention_in_some_stages_and_blocks():
    names = {}
    for kind in ("stages", "blocks"):
        stages = CONFIGS[f"ffnet_1_hybrid_{kind}"].stages
        names[kind] = [[s.mixers(i)[0].query_key.name for i in range(s.depth)] for s in stages]
    plain = [["depthwise"] * 2] * 2
    assert names["stages"] == [*plain, ["scaled_dot"] * 8, ["scaled_dot"] * 2]
    assert names["blocks"] == [*plain, ["depthwise", "scaled_dot"] * 4, ["depthwise", "scaled_dot"]]
    small = hybrid(CONFIGS["ffnet_mini"], "attention", stages=[-1])
    assert Backbone(small, num_classes=5, img_size=32)(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


def test_preset_replaces_slots():
    assert resolve_mixer(preset("ffn", activation="relu")).activation.name == "relu"
    assert resolve_mixer(preset("pooling", kernel_size=5)).kernel_size == 5
    assert PRESETS["ffn"]["activation"] == "gelu"


def test_an_unknown_mixer_is_told_the_nearest_or_all_that_there_are():
    known = r"the presets are attention, .*, the baselines identity, "
    for name, hint in (("xcaa", "did you mean 'xca'"), ("nope", known)):
        with pytest.raises(ConfigError, match=rf"^no mixer '{name}'; {hint}"):
            resolve_mixer(name)
    with pytest.raises(ConfigError, match=r"^stages.0.token_mixer: no mixer 'xcaa'.*$"):
        override(CONFIGS["ffnet_mini"], {"stages.0.token_mixer": "xcaa"})


def test_a_users_baseline_goes_by_its_name(monkeypatch):
    monkeypatch.setitem(REGISTRY, "baseline", dict(REGISTRY["baseline"]))

    @register
    class Halved(Baseline):
        name = "halved"

        def forward(self, x):
            return x / 2

    assert resolve_mixer("halved") == resolve_mixer({"name": "halved"})
    config = override(CONFIGS["ffnet_mini"], {"stages.*.token_mixer": "halved"})
    assert type(Backbone(config, 10).stages[0].blocks[0].token_mixer) is Halved
    assert find("halved").label == "baseline 'halved'"
    with pytest.raises(ConfigError, match="did you mean 'halved'"):
        resolve_mixer("halved!")


# ---- tracing and initialisation


@pytest.mark.parametrize("name", [*PRESETS, *BASELINES])
def test_scripts(name):
    """On an odd map smaller than a kernel; `check` has what else a mixer goes through."""
    mixer, x = build(name, (5, 9)).float(), torch.randn(2, DIM, 5, 9)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(mixer)(x), mixer(x), rtol=1e-4, atol=1e-5)


def test_networks_trace_script_and_start_alike():
    """In a backbone, which initialises: operations with tensors of their own, and fast paths."""
    mixers = [
        ["neighbourhood_attention", "attention"],
        ["mlp_mixer", "gmlp", "star_relu_ffn"],
        ["xca", "moganet", "hydra_attention"],
        ["random_mixing", "sigmoid_attention"],
    ]
    changes = {f"stages.{i}.depth": len(names) for i, names in enumerate(mixers)}
    changes |= {f"stages.{i}.token_mixer": names for i, names in enumerate(mixers)}
    with pytest.raises(ConfigError, match=r"lists 3 mixers for 2 blocks"):
        override(CONFIGS["ffnet_mini"], changes | {"stages.1.depth": 2})
    small = override(CONFIGS["ffnet_mini"], {**changes, "stem_stride": 4, "stem_width": 8})
    model = Backbone(small, num_classes=3, img_size=64).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        y = model(x)
        assert torch.equal(torch.fx.symbolic_trace(model)(x), y)
        torch.testing.assert_close(torch.jit.script(model)(x), y)
    Backbone(small, num_classes=3, img_size=64, device="meta")
    once, again = (Backbone(small, num_classes=3, img_size=64, seed=5).state_dict() for _ in range(2))
    for key, value in once.items():
        assert torch.equal(value, again[key]), key


@pytest.mark.parametrize("name", [*PRESETS, *BASELINES])
def test_a_step_after_saving_and_loading_is_the_step_without(name):
    """Nothing that a mixer keeps or draws is outside its weights and buffers."""

    def start():
        mixer = build_mixer(resolve_mixer(name), Site(64, 7, 7)).train()
        return mixer, torch.optim.AdamW([*mixer.parameters(), nn.Parameter(torch.zeros(1))], lr=1e-2)

    def step(mixer, optimizer, seed):
        x = torch.randn(2, 64, 7, 7, generator=torch.Generator().manual_seed(seed), requires_grad=True)
        optimizer.zero_grad()
        mixer(x).square().mean().backward()
        optimizer.step()

    one, other = start(), start()  # the other is drawn anew
    step(*one, seed=0)
    for target, source in zip(other, one, strict=True):
        target.load_state_dict(deepcopy(source.state_dict()))
    for mixer, optimizer in (one, other):
        step(mixer, optimizer, seed=1)
    for (key, value), again in zip(one[0].state_dict().items(), other[0].state_dict().values(), strict=True):
        assert value.equal(again), key
    x = torch.ones(2, 64, 7, 7)
    assert one[0](x).equal(other[0](x))
