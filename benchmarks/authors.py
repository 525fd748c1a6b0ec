"""Presets as their authors compute them, in plain PyTorch with the mixer's weights: what speed and results are held
against, by `benchmarks/presets.py` and `tests/test_catalogue.py`.

A preset is timm's module where timm has it. Else it is the formula of the authors' code, in their layout (tokens or a
map) and with their projections joined to one layer where theirs are.
"""

from collections.abc import Callable

import torch
from timm.layers.diff_attention import DiffAttention
from timm.models import efficientvim, focalnet, shvit
from torch import Tensor, nn
from torch.nn import functional as F

# from a mixer to the authors' network with its weights
AUTHORS: dict[str, Callable[[nn.Module], nn.Module]] = {}

PROJECTIONS = {
    "q": "query.proj",
    "k": "query_key.key",
    "v": "coefficient_value.value",
    "o": "coefficient_value.gate.0",  # the output gate
    "a": "coefficient_value.key",  # the keys that agents ask
    "b": "query_key.beta",
    "t": "query_key.step",
    "s": "coefficient_value.step",
}


class Formula(nn.Module):
    """A formula of a mixer's projections; it gives what the output projection takes.

    Args:
        joined: letters of `PROJECTIONS`, those of one layer together: "qk o". The formula gets them in this order.
        rows: the authors hold X as tokens (B, N, C), not as a map (B, C, H, W).
    """

    def __init__(self, mixer: nn.Module, formula: Callable[..., Tensor], joined: str, rows: bool) -> None:
        super().__init__()
        self.mixer, self.formula, self.rows = mixer, formula, rows
        parts = [[mixer.get_submodule(PROJECTIONS[letter]) for letter in group] for group in joined.split()]
        self.layers = nn.ModuleList(join(group) for group in parts)
        self.widths = [[len(layer.weight) for layer in group] for group in parts]

    def forward(self, x: Tensor) -> Tensor:
        own = tokens(x) if self.rows else x
        projected = [
            part
            for layer, widths in zip(self.layers, self.widths, strict=True)
            for part in project(layer, own).split(widths, dim=-1 if self.rows else 1)
        ]
        y = self.formula(self.mixer, own, x, *projected)
        y = project(self.mixer.coefficient_value.proj, y)
        return y if y.ndim == 4 else to_map(y, x)


class Around(nn.Module):
    """A module, called in another way."""

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.module, x)


def formula(name: str, joined: str, rows: bool = True) -> Callable:
    def add(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        AUTHORS[name] = lambda mixer: Formula(mixer, function, joined, rows)
        return function

    return add


def authors(name: str) -> Callable:
    def add(function: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module], nn.Module]:
        AUTHORS[name] = function
        return function

    return add


# ---- layouts and layers


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).mT  # (B, N, C)


def to_map(y: Tensor, x: Tensor) -> Tensor:
    return y.mT.unflatten(2, x.shape[2:])


def heads(x: Tensor, dim: int) -> Tensor:
    """Tokens or a map → (B, heads, N, d)."""
    if x.ndim == 4:
        return x.flatten(2).unflatten(1, (-1, dim)).mT
    return x.unflatten(-1, (-1, dim)).transpose(1, 2)


def unheads(y: Tensor) -> Tensor:
    return y.transpose(1, 2).flatten(2)  # (B, N, C)


def project(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1×1 convolution of a map, or a linear layer of tokens."""
    return layer(x) if x.ndim == 4 else F.linear(x, layer.weight.flatten(1), layer.bias)


@torch.no_grad()
def copy(target: nn.Module, *sources: nn.Module) -> None:
    """Weights and biases of several layers, stacked along the outputs, into one."""
    target.weight.copy_(torch.cat([source.weight.flatten(1) for source in sources]).reshape(target.weight.shape))
    if target.bias is not None:
        target.bias.copy_(torch.cat([source.bias for source in sources]))


def like(module: nn.Module, mixer: nn.Module) -> nn.Module:
    weight = next(mixer.parameters())
    return module.to(weight.device, weight.dtype).train(mixer.training)


def join(layers: list[nn.Module]) -> nn.Module:
    """One layer in place of several with the same input."""
    if len(layers) == 1:
        return layers[0]
    joined = nn.Conv2d(layers[0].weight.shape[1], sum(len(layer.weight) for layer in layers), 1)
    copy(joined, *layers)
    return like(joined, layers[0])


def finish(mixer: nn.Module, y: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """Sums of values with the local path, both as tokens or as maps."""
    local = mixer.coefficient_value.local
    return y + (local(v) if v.ndim == 4 else tokens(local(to_map(v, x))))


# ---- softmax


@formula("gated_attention", "qo k v")
def _(mixer, own, x, q, o, k, v):
    q, k, v = (heads(t, mixer.query_key.head_dim) for t in (q, k, v))
    return unheads(F.scaled_dot_product_attention(q, k, v)) * o.sigmoid()


@formula("rmt", "q k v")
def _(mixer, own, x, q, k, v):
    d = mixer.query_key.head_dim
    scores = heads(q, d) @ (heads(k, d) * d**-0.5).mT + mixer.query_key.bias(x)
    return finish(mixer, unheads(scores.softmax(-1) @ heads(v, d)), v, x)


@authors("differential_attention")
def _(mixer):
    value, dim = mixer.coefficient_value, mixer.query.out_dim
    timm = DiffAttention(dim, num_heads=mixer.query_key.heads // 2, qkv_bias=True)
    timm.fused_attn = False  # as in the authors' code; the fused kernel sums values twice
    copy(timm.qkv, mixer.query.proj, mixer.query_key.key, value.value)
    copy(timm.proj, value.proj)
    timm.lambda_init = mixer.activation.start
    timm.sub_norm.weight.data.copy_(value.norm.weight[:, 0])
    for name, factor in zip(("q1", "k1", "q2", "k2"), mixer.activation.factors, strict=True):
        getattr(timm, f"lambda_{name}").data.copy_(factor)
    return like(Around(timm, lambda timm, x: to_map(timm(tokens(x)), x)), mixer)


@formula("agent_attention", "q av")
def _(mixer, own, x, q, k, v):
    d = mixer.query_key.head_dim
    pooled = F.adaptive_avg_pool2d(to_map(q, x), mixer.query_key.coefficients.pool)
    agents, q, k = heads(tokens(pooled), d), heads(q, d), heads(k, d)
    found = (agents * d**-0.5 @ k.mT).softmax(-1) @ heads(v, d)
    return finish(mixer, unheads((q * d**-0.5 @ agents.mT).softmax(-1) @ found), v, x)


@authors("shvit")
def _(mixer):
    dim = mixer.coefficient_value.proj.conv.weight.shape[0]
    timm = shvit.SHSA(dim, mixer.query.out_dim, mixer.coefficient_value.split[0])
    layers = [mixer.query.proj[1], mixer.query_key.key[1], mixer.coefficient_value.value[1]]
    for target, sources in ((timm.qkv, layers), (timm.proj[1], [mixer.coefficient_value.proj])):
        copy(target.c, *(source.conv for source in sources))
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(target.bn, name).data.copy_(torch.cat([getattr(source.norm, name) for source in sources]))
    return like(timm, mixer)


@formula("slide_attention", "qkv", rows=False)
def _(mixer, own, x, q, k, v):
    key, value = mixer.query_key, mixer.coefficient_value

    def shifted(t, layer):
        """Neighbours by a fixed shift and by a learned kernel, (B, heads, d, k², H, W)."""
        t = t.unflatten(1, (-1, key.head_dim)).flatten(0, 1)
        moved = F.conv2d(t, layer.shift, padding=1, groups=key.head_dim) + F.conv2d(
            t, layer.learned.weight, layer.learned.bias, padding=1, groups=key.head_dim
        )
        return moved.reshape(len(x), -1, key.head_dim, 9, *x.shape[2:])

    q = q.unflatten(1, (-1, key.head_dim)).unsqueeze(3) * key.head_dim**-0.5
    scores = (q * (shifted(k, key.shifted) + key.bias.unsqueeze(1))).sum(2)
    off = F.unfold(torch.ones_like(x[:1, :1]), 3, padding=1).reshape(1, 1, 9, *x.shape[2:]) == 0
    shares = scores.masked_fill(off, float("-inf")).softmax(2).unsqueeze(2)
    return (shares * shifted(v, value.shifted)).sum(3).flatten(1, 2)


# ---- linear attention


def normalised(q, k, v):
    """q and k positive, (B, heads, N, d), as in the code of MLLA, RALA and PolaFormer."""
    z = 1 / (q @ k.mean(-2, keepdim=True).mT + 1e-6)
    scale = q.shape[2] ** -0.5
    return q @ ((k.mT * scale) @ (v * scale)) * z


@formula("mlla", "qk o")
def _(mixer, own, x, q, k, o):
    d = mixer.query_key.head_dim
    y = normalised(heads(F.elu(q) + 1, d), heads(F.elu(k) + 1, d), heads(own, d))
    return finish(mixer, unheads(y), own, x) * F.silu(o)


@formula("inline", "qkv")
def _(mixer, own, x, q, k, v):
    d, value = mixer.query_key.head_dim, to_map(v, x)
    q, k, v = (heads(t, d) for t in (q, k, v))
    scale = d**-0.5 / q.shape[2]
    mean = k.sum(-2, keepdim=True).mT * scale
    y = unheads(q @ (k.mT * scale**0.5 @ (v * scale**0.5)) + (1 - q @ mean) * v.mean(-2, keepdim=True))
    kernels = mixer.coefficient_value.kernel.make(own.mean(1)[..., None, None]).reshape(-1, 1, 3, 3)
    local = F.conv2d(value.reshape(1, -1, *x.shape[2:]), kernels, padding=1, groups=len(kernels))
    return y + tokens(local.reshape(value.shape))


@formula("mala", "qkvo", rows=False)
def _(mixer, own, x, q, k, v, o):
    d = mixer.query_key.head_dim
    q, k, sums = heads(F.elu(q) + 1, d), heads(F.elu(k) + 1, d), heads(v, d)
    z = q @ k.mean(-2, keepdim=True).mT * d**-0.5
    scale = (d**-0.5 / q.shape[2]) ** 0.5
    y = q @ (k.mT * scale @ (sums * scale)) * (1 + 1 / (z + 1e-6)) - z * sums.mean(-2, keepdim=True)
    return finish(mixer, to_map(unheads(y), x), v, x) * o


@formula("rala", "qkvo", rows=False)
def _(mixer, own, x, q, k, v, o):
    d = mixer.query_key.head_dim
    q, k = heads(F.elu(q) + 1, d), heads(F.elu(k) + 1, d)
    weights = (q.mean(-2, keepdim=True) * d**-0.5 @ k.mT).softmax(-1) * q.shape[2]
    return finish(mixer, to_map(unheads(normalised(q, k * weights.mT, heads(v, d))), x), v, x) * o


@formula("polaformer", "qo kv")
def _(mixer, own, x, q, o, k, v):
    key, d = mixer.query_key, mixer.query_key.head_dim
    scale, power = F.softplus(key.spread).flatten(), 1 + 4 * key.power.sigmoid().flatten()
    q, k = q / scale, k / scale
    q_plus, q_minus, k_plus, k_minus = (heads(F.relu(t) ** power, d) for t in (q, -q, k, -k))
    keys = torch.cat([k_plus, k_minus], -1)
    first, second = heads(v, d).chunk(2, -1)
    equal = normalised(torch.cat([q_plus, q_minus], -1), keys, first)
    opposite = normalised(torch.cat([q_minus, q_plus], -1), keys, second)
    return finish(mixer, unheads(torch.cat([equal, opposite], -1)), v, x) * o


@formula("non_causal_ssd", "ovkqs")
def _(mixer, own, x, o, v, k, q, step):
    value = mixer.coefficient_value
    convs = [layer.ending[0] for layer in (value, mixer.query_key, mixer.query)]
    weight, bias = torch.cat([conv.weight for conv in convs]), torch.cat([conv.bias for conv in convs])
    together = F.silu(F.conv2d(to_map(torch.cat([v, k, q], -1), x), weight, bias, padding=1, groups=len(weight)))
    v, k, q = tokens(together).split([v.shape[-1], k.shape[-1], q.shape[-1]], -1)
    values = heads(v, value.channels // value.value_heads)
    weighed = values * (-F.softplus(step) * value.rate.exp().flatten()).mT[..., None]
    y = q[:, None] @ (k[:, None].mT @ weighed) + values * value.factor
    norm = value.layer_norm
    return F.layer_norm(unheads(y), norm.normalized_shape, norm.weight, norm.bias, norm.eps) * o


def delta(mixer, q, k, v, beta, decay=None):
    """One chunk of the chunkwise form: the writes by a triangular system, then what queries read of them."""
    d = mixer.query_key.head_dim
    q, k, v = (heads(F.silu(t), d) for t in (q, k, v))
    q, k, beta = F.normalize(q, dim=-1) * d**-0.5, F.normalize(k, dim=-1), beta.sigmoid().mT[..., None]
    corrected, read = k * beta @ k.mT, q @ k.mT
    if decay is not None:
        corrected, read = corrected * decay, read * decay
    written = torch.linalg.solve_triangular(corrected.tril(-1), v * beta, upper=False, unitriangular=True)
    y = read.tril() @ written
    return unheads(F.rms_norm(y, (d,), mixer.coefficient_value.norm.weight.flatten(), 1e-5))


@formula("delta_net", "q k v b")
def _(mixer, own, x, q, k, v, beta):
    return delta(mixer, q, k, v, beta)


@formula("gated_delta_net", "q k v b t o")
def _(mixer, own, x, q, k, v, beta, step, o):
    time = (-mixer.query_key.rate.exp().flatten() * F.softplus(step)).mT.cumsum(-1)
    decay = (time[..., None] - time[..., None, :]).tril().exp()
    return delta(mixer, q, k, v, beta, decay) * F.silu(o)


# ---- convolutions and gates


@authors("lsnet")
def _(mixer):
    """By unfolded neighbours; the authors' own is a Triton kernel. Channels that share a kernel are neighbours."""

    def lsconv(mixer, x):
        query, (large, point, act, last, norm) = mixer.query.proj, mixer.query_key.key
        hidden = point.norm(point.conv(large.norm(large.conv(F.relu(query.norm(query.conv(x)))))))
        weights = norm(last(act(hidden))).reshape(len(x), -1, 1, 9, x[0, 0].numel())
        neighbours = F.unfold(x, 3, padding=1).reshape(len(x), weights.shape[1], -1, *weights.shape[3:])
        return (neighbours * weights).sum(3).reshape(x.shape)

    return Around(mixer, lsconv)


@authors("focalnet")
def _(mixer):
    key, value = mixer.query_key, mixer.coefficient_value
    timm = focalnet.FocalModulation(mixer.query.out_dim, 3, len(key.links))
    copy(timm.f, value.value, mixer.query.proj, key.gate)
    copy(timm.h, key.key)
    copy(timm.proj, value.proj)
    for target, link in zip(timm.focal_layers, key.links, strict=True):
        copy(target[0], link)
    return like(timm, mixer)


@formula("hornet", "vq", rows=False)
def _(mixer, own, x, v, q):
    value = mixer.coefficient_value
    first, second = mixer.query_key.key(q).split(value.split, 1)
    return value.widen(v * first) * second


@authors("efficient_vim")
def _(mixer):
    value, key = mixer.coefficient_value, mixer.query_key
    timm = efficientvim.HSMSSD(value.proj.weight.shape[0], state_dim=len(key.key.weight))
    for target, read, written in (
        (timm.BCdt_proj.conv, key.key, value.weights[0]),
        (timm.dw.conv, key.spread, value.weights[1]),
    ):
        number, share = written.weight.data.chunk(2)
        target.weight.data.copy_(torch.cat([number, read.weight, share]).reshape(target.weight.shape))
    copy(timm.hz_proj.conv, value.value)
    copy(timm.out_proj.conv, value.proj)
    timm.D.data.fill_(value.direct.item())
    return like(Around(timm, lambda timm, x: timm(x)[0]), mixer)
