"""Multiply-adds against closed forms, against torch's own counter, and refusals of what nothing counts."""

import pytest
import timm
import torch
from timm.layers import set_fused_attn
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from metamixer import MetaMixerConfig, Site, build_mixer, resolve_mixer
from metamixer.cost import count
from metamixer.mixer import MetaMixer
from metamixer.presets import BASELINES, PRESETS

C, N = 32, 64
SIZE = (C, 8, 8)
HIDDEN = round(8 / 3 * C)
# Multiply-adds for each token and channel; k² of a kernel is written out. A linear layer of C channels is C.
CLOSED_FORMS = {
    "attention": 4 * C + 2 * N,
    "relu_attention": 4 * C + 2 * N,
    "sigmoid_attention": 4 * C + 2 * N,
    "linear_attention": 4 * C + 2 * 16 + 1,  # heads of 16, and the sum that divides
    "hydra_attention": 4 * C + 1,  # K ⊙ V, summed over the tokens; Q ⊙ is a gate
    "neighbourhood_attention": 4 * C + 2 * 49,
    "xca": 4 * C + 2 * 32,  # heads of 32
    "ffn": 8 * C,
    "squared_relu_ffn": 8 * C,
    "star_relu_ffn": 8 * C,
    "convnext": 49 + 8 * C,
    "convnext_ffn": 49 + 6 * C,
    "ffnified_attention": C + 2 * 49,
    "mlp_mixer": 2 * 2 * N,
    "external_attention": C + 2 * 64,
    "mambaout": 2 * HIDDEN + 49 + HIDDEN,
    "starnet": 49 + 3 * 4 * C + 49,
    "van": C + 25 + 49 + C + C,
    "segnext": C + 25 + 2 * (7 + 11 + 21) + C + C,
    "conv2former": C + 121 + C + C,
    "moganet": 4 * C + 25 + 25 * 12 / C + 49 * 16 / C,
    "gmlp": 3 * 3 * C + 3 * N,
    "swiftformer": 4 * C + 2,  # the weights of the pooling, and the pooling
    "relative_attention": 3 * C + 2 * 49,
    "identity": 0,
    "pooling": 0,
    "depthwise": 49,
    "rep_mixer": 9,
    "random_mixing": N,
}
# evaluated in another order than slot by slot, and cheaper for it
REASSOCIATED = {"linear_attention", "hydra_attention"}


def macs(module, size=SIZE):
    return count(module, size).macs


def build(name):
    return build_mixer(resolve_mixer(name), Site(*SIZE)).eval()


@pytest.mark.parametrize("name", [*PRESETS, *BASELINES])
def test_closed_forms(name):
    assert macs(build(name)) == pytest.approx(N * C * CLOSED_FORMS[name], abs=0.1)


@pytest.mark.parametrize("name", PRESETS)
def test_fast_paths_count_as_the_slots_unless_reassociated(name):
    config, mixer = resolve_mixer(name), build(name)
    assert isinstance(config, MetaMixerConfig)
    slots = macs(MetaMixer(config, Site(*SIZE)))
    if name in REASSOCIATED:
        assert slots == N * C * (4 * C + 2 * N) > macs(mixer)
    else:
        assert slots == macs(mixer)


@pytest.mark.parametrize("name", ["attention", "xca", "ffnified_attention", "swiftformer"])
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


class Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    "function, name",
    [
        (lambda x: torch.fft.rfft2(x).real, r"aten::fft_rfft2 \(1×\)"),
        (lambda x: torch.linalg.vecdot(x, x.roll(1, 2)), "aten::linalg_vecdot"),
        (Custom.apply, r"prim::PythonOp.Custom \(1×\)"),
    ],
)
def test_what_nothing_counts_is_refused_by_name(function, name):
    with pytest.raises(ValueError, match=f"multiply-adds not counted for {name}") as error:
        macs(Apply(function))
    assert "\n" not in str(error.value)


def loop(x):
    y = torch.zeros_like(x)
    for shift in range(5):
        y = y + x.roll(shift, 2) * x.sigmoid()
    return y


def overlap_add(x):
    """Nine products for each number of the map, summed where their windows overlap."""
    columns = nn.functional.unfold(x, 3, padding=1)
    return nn.functional.fold(columns * columns.sigmoid(), SIZE[1:], 3, padding=1)


def loop_of_addcmul(x):
    y = torch.zeros_like(x)
    for shift in range(5):
        y = torch.addcmul(y, x.roll(shift, 2), x.sigmoid())
    return y


def residual_stream_of_addcmul(x):
    for scale in (0.1, 0.2, 0.3):
        x = torch.addcmul(x, torch.full((C, 1, 1), scale), x.sigmoid())
    return x


def loop_from_the_first(x):
    y = x.roll(1, 2) * x.sigmoid()
    for shift in range(2, 6):
        y += (x.roll(shift, 2) * x.sigmoid()).reshape(x.shape)
    return y


def residual_stream(x):
    for scale in (torch.full((C, 1, 1), 0.1), torch.full((C, 1, 1), 0.2), torch.full((C, 1, 1), 0.3)):
        x = x + scale * x.sigmoid()
    return x


@pytest.mark.parametrize(
    "function, times",
    [
        (lambda x: x * x.sigmoid(), 0),  # a gate
        (lambda x: x + x * x.sigmoid(), 0),
        (lambda x: (x * x).sum(1, keepdim=True), 0),  # a squared norm
        (lambda x: (0.5 * x).sum(1, keepdim=True), 0),
        (residual_stream, 0),
        (lambda x: (x * x.sigmoid()).sum(1, keepdim=True), 1),
        (lambda x: torch.stack([x * x.sigmoid(), x * x.tanh()], 2).sum(2), 2),
        (lambda x: x * x.sigmoid() - x.roll(1, 2) * x.tanh(), 2),
        (lambda x: torch.addcmul(x, x, x.sigmoid()), 0),  # as x + x * s
        (lambda x: torch.addcmul(x * x.sigmoid(), x, x.tanh()), 2),
        (lambda x: torch.addcmul(x, x, x.sigmoid()) + x.roll(1, 2) * x.tanh(), 2),
        (lambda x: torch.addcmul(x, x * x.tanh(), x.sigmoid()), 0),  # a product of products
        (lambda x: torch.addcmul(x, torch.tensor(0.5), x), 0),
        (residual_stream_of_addcmul, 0),
        (loop_of_addcmul, 5),
        (lambda x: nn.functional.fold(nn.functional.unfold(x, 3, padding=1), SIZE[1:], 3, padding=1), 0),
        (overlap_add, 9),
        (loop, 5),
        (loop_from_the_first, 5),
        (lambda x: torch.einsum("bchw,bdhw->bcd", x, x.sigmoid()), C),
        (lambda x: torch.einsum("...chw, ...dhw -> ...cd", x, x.sigmoid()), C),
        (lambda x: torch.einsum("bchw,bdhw", x, x.sigmoid()), C),
        (lambda x: torch.einsum("bchw,bchw->bchw", x, x.sigmoid()), 0),
        (lambda x: torch.einsum("bchw,bdhw,bdij->bcij", x, x.sigmoid(), x.tanh()), C + C),
    ],
    ids=range(24),
)
def test_products_count_where_they_are_summed(function, times):
    assert macs(Apply(function)) == times * N * C


def test_networks_of_half_precision_and_without_parameters():
    assert macs(nn.Conv2d(C, C, 1).bfloat16()) == N * C * C
    assert count(nn.Identity(), SIZE).parameters == 0
