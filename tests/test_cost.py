"""Multiply-adds against closed forms, against torch's own counter, and refusals of what nothing counts."""

import pytest
import timm
import torch
from timm.layers import set_fused_attn
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from metamixer import MetaMixerConfig, Site, build_mixer, resolve_mixer
from metamixer.cost import count, sizes
from metamixer.counters import register_cost
from metamixer.mixer import MetaMixer
from metamixer.presets import PRESETS

C, N = 32, 64
SIZE = (C, 8, 8)
# evaluated in another order than slot by slot, and cheaper for it
REASSOCIATED = {
    *("linear_attention", "hydra_attention", "mlla", "inline", "mala", "rala", "polaformer"),
    *("non_causal_ssd", "delta_net", "gated_delta_net"),
}


def macs(module, size=SIZE):
    return count(module, size).macs


def build(name):
    return build_mixer(resolve_mixer(name), Site(*SIZE)).eval()


class ReadsItsWeights(nn.Linear):
    """Has no meaning without numbers."""

    def forward(self, x):
        return super().forward(x) if self.weight.abs().sum().item() > 0 else x


@pytest.mark.parametrize("make", [*PRESETS, lambda: ReadsItsWeights(8, C)])
def test_a_network_counts_the_same_without_numbers(make):
    made, size = (lambda: build(make), SIZE) if isinstance(make, str) else (make, (C, 8, 8))
    found, expected = sizes(made, size), count(made(), size)
    assert (found.parameters, found.macs) == (expected.parameters, expected.macs)


@pytest.mark.parametrize("name", PRESETS)
def test_fast_paths_count_as_the_slots_unless_reassociated(name):
    config, mixer = resolve_mixer(name), build(name)
    assert isinstance(config, MetaMixerConfig)
    slots = macs(MetaMixer(config, Site(*SIZE)))
    if name in REASSOCIATED:
        assert slots >= macs(mixer)
    else:
        assert slots == macs(mixer)


@pytest.mark.parametrize("name", ["attention", "sigmoid_attention", "ffnified_attention", "linear_attention"])
def test_torchs_counter_agrees(name):
    mixer = timm.models.reparameterize_model(build(name))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        mixer(torch.zeros(1, *SIZE))
    assert macs(mixer) == counter.get_total_flops() / 2


@pytest.mark.parametrize("fused", [True, False])
def test_vit_tiny(fused):
    """1.2537 G, convolutions and matrix products; fvcore alone says 1.080 with fused attention, 1.258 without."""
    set_fused_attn(fused)
    try:
        model = timm.create_model("vit_tiny_patch16_224")
    finally:
        set_fused_attn(True)
    assert macs(model, (3, 224, 224)) == pytest.approx(1.2537e9, rel=5e-5)


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Fourier(Apply):
    def __init__(self):
        super().__init__(lambda x: torch.fft.irfft2(torch.fft.rfft2(x)))


def test_what_nothing_counts_is_refused_by_name_until_its_cost_is_registered(monkeypatch):
    named = r"multiply-adds not counted for aten::_fft_c2r \(1×\), aten::_fft_r2c \(1×\): .*register_cost"
    with pytest.raises(ValueError, match=named) as error:
        macs(Fourier())
    assert "\n" not in str(error.value)
    monkeypatch.setattr("metamixer.counters._MODULES", {})
    register_cost(Apply, lambda module, x: 7 * x.numel())  # by its base, too
    assert macs(nn.Sequential(Fourier(), nn.Conv2d(C, C, 1))) == N * C * (7 + C)
    assert macs(Apply(Fourier())) == 7 * N * C  # what runs inside is no cost of its own


def loop(x):
    y = torch.zeros_like(x)
    for shift in range(5):
        y = y + x.roll(shift, 2) * x.sigmoid()
    return y


def loop_in_place(x):
    y = x.roll(1, 2) * x.sigmoid()
    for shift in range(2, 6):
        y += (x.roll(shift, 2) * x.sigmoid()).reshape(x.shape)
    return y


def loop_of_addcmul(x):
    y = torch.zeros_like(x)
    for shift in range(5):
        y = torch.addcmul(y, x.roll(shift, 2), x.sigmoid())
    return y


def convolution_by_hand(x):
    weight = torch.ones(5, C, 1, 1)
    return sum(weight[shift] * x.roll(shift, 2) for shift in range(5))


@pytest.mark.parametrize(
    "function, times",
    [
        (lambda x: x * x.sigmoid(), 1),
        (lambda x: x + x * x.sigmoid(), 1),
        (lambda x: x * torch.full((C, 1, 1), 0.1), 1),
        (lambda x: x * x.mean((2, 3), keepdim=True), 1),
        (lambda x: (x * x.sigmoid()).sum(1, keepdim=True), 1),
        (lambda x: torch.stack([x * x.sigmoid(), x * x.tanh()], 2).sum(2), 2),
        (lambda x: torch.addcmul(x, x, x.sigmoid()), 1),
        (lambda x: torch.lerp(x, x.tanh(), x.sigmoid()), 1),
        (lambda x: nn.functional.glu(torch.cat([x, x], 1), 1), 1),
        (lambda x: torch.linalg.vecdot(x, x.roll(1, 2)), 1),
        (lambda x: x.cumprod(2), 1),
        (lambda x: (x * x).sum(1, keepdim=True), 0),  # a square, as x ** 2
        (lambda x: (0.5 * x).sum(1, keepdim=True), 0),
        (lambda x: torch.addcmul(x, torch.tensor(0.5), x), 0),
        (lambda x: nn.functional.normalize(x).clamp(0, 1).cumsum(2), 0),
        (lambda x: nn.functional.fold(nn.functional.unfold(x, 3, padding=1), SIZE[1:], 3, padding=1), 0),
        (loop, 5),
        (loop_in_place, 5),
        (loop_of_addcmul, 5),
        (convolution_by_hand, 5),
        (lambda x: torch.einsum("bchw,bdhw->bcd", x, x.sigmoid()), C),
        (lambda x: torch.einsum("...chw, ...dhw -> ...cd", x, x.sigmoid()), C),
        (lambda x: torch.einsum("bchw,bdhw", x, x.sigmoid()), C),
        (lambda x: torch.einsum("bchw,bchw->bchw", x, x.sigmoid()), 1),
        (lambda x: torch.einsum("bchw,bdhw,bdij->bcij", x, x.sigmoid(), x.tanh()), C + C),
        (lambda x: torch.tensordot(x, torch.ones(C, 3), ([1], [0])), 3),
        (lambda x: x.flatten(2).mT @ x.flatten(2), N),
    ],
    ids=range(27),
)
def test_products_count_whatever_is_done_with_them(function, times):
    assert macs(Apply(function)) == times * N * C


class Scan(nn.Module):
    """A state (B, heads, d, d) that goes from token to token: decayed, written to, read out."""

    def __init__(self, heads, write):
        super().__init__()
        self.heads, self.write = heads, write
        self.decay = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x):
        q = x.flatten(2).unflatten(1, (self.heads, -1))  # (B, heads, d, N)
        state = x.new_zeros(x.shape[0], self.heads, q.shape[2], q.shape[2])
        read = []
        for t in range(q.shape[-1]):
            key = q[..., t : t + 1]
            state = self.write(self, state, key, key.sigmoid())
            read.append(state @ key)
        return torch.cat(read, -1)


def outer(scan, state, k, v):
    return state + v * k.transpose(-2, -1)


def outer_as_matrices(scan, state, k, v):
    return state + v @ k.transpose(-2, -1)


def delta(scan, state, k, v):
    return state + (v - state @ k) * k.transpose(-2, -1)


def decayed(scan, state, k, v):
    return scan.decay * state + v * k.transpose(-2, -1)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("write, times", [(outer, 2), (outer_as_matrices, 2), (delta, 3), (decayed, 3)])
def test_scans_count_each_product_however_they_are_written(write, times, heads):
    assert macs(Scan(heads, write)) == times * N * C * (C // heads)


@pytest.mark.parametrize("layer, gates", [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_layers(layer, gates):
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer(8, 16, batch_first=True)

        def forward(self, x):
            return self.layer(x.flatten(2))[0]  # rows of 8·8 / 8

    model = nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (N // 8, 8)), nn.Flatten(1, 2), Rows())
    steps, elementwise = C * N // 8, {1: 0, 3: 2, 4: 3}[gates] * 16
    assert macs(model) == steps * (gates * 16 * (8 + 16) + elementwise)
    assert macs(model.to("meta")) == macs(model)  # fused on a CPU, step by step there


@pytest.mark.parametrize(
    "module, expected",
    [
        (nn.Conv2d(C, C, 3, padding="same", bias=False), 9 * N * C * C),
        (nn.ConvTranspose2d(C, 2, 2, stride=2), N * C * 2 * 4),
        (nn.Dropout(inplace=True), 0),
        (nn.Upsample(scale_factor=2, mode="nearest-exact"), 0),
        (nn.Sequential(nn.Flatten(2), nn.AvgPool1d(2)), 0),
        (nn.Sequential(nn.Hardswish(inplace=True), nn.Mish(inplace=True), nn.PReLU(), nn.LogSigmoid()), 0),
        (nn.Sequential(nn.Flatten(2), nn.RMSNorm(N), nn.LayerNorm(N)), 0),
        (nn.Sequential(nn.Flatten(2), nn.MultiheadAttention(N, 2, batch_first=True)), None),
        (nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(N, 2, 3 * N, batch_first=True)), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_users_of_torch_take_for_granted(module, expected):
    attention = 4 * C * N * N + 2 * C * C * N  # four projections of C tokens of N channels, and two products
    if isinstance(module[-1] if isinstance(module, nn.Sequential) else None, nn.MultiheadAttention):
        layer = module[-1]
        module, expected = nn.Sequential(module[0], Apply(lambda x: layer(x, x, x)[0])), attention
        module[1].layer = layer
    elif expected is None:
        expected = attention + 2 * C * N * 3 * N
    assert macs(module.eval()) == expected


@pytest.mark.parametrize(
    "name",
    ["convmixer_768_32", "tnt_s_legacy_patch16_224", "sequencer2d_s", "vit_base_resnet26d_224", "mobilenetv3_rw"],
)
def test_timms_models_count(name):
    model = timm.create_model(name, device="meta")
    assert count(model, (3, 224, 224), inplace=True).macs > 2e8


def test_the_largest_tensor_is_known():
    """Scores of all pairs of tokens, which only the fused kernel does without."""
    relu, fused = (build_mixer(resolve_mixer(name), Site(64, 16, 16)) for name in ("relu_attention", "attention"))
    assert count(relu, (64, 16, 16)).largest == 2 * 256 * 256
    assert count(fused, (64, 16, 16)).largest == 64 * 256


def test_networks_of_half_precision_and_without_parameters():
    assert macs(nn.Conv2d(C, C, 1).bfloat16()) == N * C * C
    assert count(nn.Identity(), SIZE).parameters == 0
