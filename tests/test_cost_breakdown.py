"""Activations, traffic, and costs by stage and slot: against fvcore, torch's counter, and closed forms."""

import io

import pytest
import timm
import torch
from fvcore.nn import ActivationCountAnalysis
from rich.console import Console
from timm.layers import set_fused_attn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metamixer import MetaMixerConfig, Site, build_mixer, resolve_mixer
from metamixer.cost import by_layer, count, total
from metamixer.cost_table import AT_ONCE, by_slot, by_stage, print_costs
from metamixer.ffnet import CONFIGS
from metamixer.fold import fold
from metamixer.metric import readable
from metamixer.mixer import MetaMixer
from metamixer.networks import Network
from metamixer.presets import PRESETS
from metamixer.timm_models import replace_mixers

C = 16
SIZE = (C, 8, 8)
N = 64


SCALED = ("caformer_s18", "poolformerv2_s12", "convnext_atto", "fastvit_t8", "repvit_m1")


@pytest.mark.parametrize(
    "value, text",
    [(None, "–"), (999, "999"), (999_400, "999 k"), (999_600, "1.00 M"), (12_345_678, "12.3 M"), (2e12, "2.00 T")],
)
def test_a_count_keeps_three_digits_where_it_rounds_up_to_the_next_unit(value, text):
    assert readable(value) == text


@pytest.fixture
def unfused():
    set_fused_attn(False)
    yield
    set_fused_attn(True)


@pytest.mark.parametrize(
    "name, size",
    [
        ("vit_tiny_patch16_224", 224),
        ("caformer_s18", 64),
        ("poolformerv2_s12", 64),
        ("convnext_atto", 64),
        ("fastvit_t8", 64),
        ("repvit_m1", 64),
        ("efficientformerv2_s0", 224),
    ],
)
def test_timms_models_cost_what_torchs_counter_says(name, size, unfused):
    """Neither counts norms, activations and pools; ours has products by the numbers of scales and gates too."""
    model = timm.create_model(name).eval()
    cost = count(model, (3, size, size))
    folded = fold(model, inplace=True).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        folded(torch.zeros(1, 3, size, size, device="meta"))
    assert 0 <= cost.macs / (counter.get_total_flops() / 2) - 1 < (1e-2 if name in SCALED else 1e-12)
    assert cost.parameters == sum(parameter.numel() for parameter in folded.parameters())


@pytest.mark.parametrize("name, published", [("ffnet_3", 22.8), ("ffnet_4", 43.1)])
def test_published_counts_at_384(name, published):
    """All but the head grows with the area, so small images tell; the counts at 256 px are in test_ffnet.py."""
    model = timm.models.reparameterize_model(timm.create_model(name).eval(), inplace=True)
    at_32, at_64 = (count(model, (3, size, size), inplace=True).macs for size in (32, 64))
    head = 1000 * model.num_features
    assert at_64 - head == 4 * (at_32 - head)
    assert ((384 // 32) ** 2 * (at_32 - head) + head) / 1e9 == pytest.approx(published, abs=0.05)


@pytest.mark.parametrize("name", ["attention", "xca", "ffnified_attention", "convnext", "mlp_mixer", "van"])
def test_activations_are_fvcores(name):
    config = resolve_mixer(name)
    assert isinstance(config, MetaMixerConfig)
    mixer = build_mixer(config, Site(32, 8, 8)).eval()
    slots = timm.models.reparameterize_model(MetaMixer(config, Site(32, 8, 8)).eval())
    expected = ActivationCountAnalysis(slots, torch.zeros(1, 32, 8, 8)).unsupported_ops_warnings(False)
    assert count(mixer, (32, 8, 8)).activations == expected.total()


@pytest.mark.parametrize(
    "module, size, moved",
    [
        (nn.Conv2d(C, 2 * C, 3, padding=1), SIZE, N * C + 9 * C * 2 * C + 2 * C + N * 2 * C),
        (nn.Conv2d(C, C, 3, 2, 1, groups=C, bias=False), SIZE, N * C + 9 * C + N // 4 * C),
        (nn.GELU(), SIZE, 2 * N * C),
        (nn.Sequential(nn.Flatten(2), nn.Linear(N, 3)), SIZE, N * C + 3 * N + 3 + 3 * C),
        (nn.AvgPool2d(2), SIZE, N * C + N // 4 * C),
        (nn.Flatten(), SIZE, 0),
    ],
)
def test_traffic_of_single_layers(module, size, moved):
    cost = count(module, size)
    assert cost.moved == moved and cost.bytes(16) == 2 * moved and cost.bytes(32) == 4 * moved


def test_the_fused_kernel_does_not_move_its_scores():
    class Attention(nn.Module):
        def forward(self, x):
            q = x.flatten(2)[:, None].mT.contiguous()  # (B, 1, N, C)
            return nn.functional.scaled_dot_product_attention(q, q + 1, q * 2)

    cost = count(Attention(), SIZE)
    made = 2 * N * C  # each of q, q + 1 and q * 2
    assert cost.moved == 3 * made + 4 * N * C
    assert (cost.macs, cost.activations) == (2 * N * N * C, N * N + N * C)


def test_matrix_products_broadcast():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.left = nn.Parameter(torch.zeros(3, 8))

        def forward(self, x):
            return self.left @ x  # (3, 8) @ (B, C, 8, 8)

    assert count(Product(), SIZE).macs == C * 3 * 8 * 8


SLOTS = {
    # by a fast path: 2 N·C·N of the kernel; the query's, the keys', the values' and the output projection
    "attention": {AT_ONCE: 2 * N * N * 32, "query": N * 32 * 32, "query-key": N * 32 * 32},
    "ffnified_attention": {"query": N * 32 * 32, "query-key": 49 * N * 32, "coefficient-value": 49 * N * 32},
    "convnext_ffn": {"query": 49 * N * 32, "query-key": 3 * N * 32**2, "coefficient-value": 3 * N * 32**2},
}


@pytest.mark.parametrize("name", SLOTS)
def test_slots(name):
    layers = by_layer(build_mixer(resolve_mixer(name), Site(32, 8, 8)), (32, 8, 8))
    slots = by_slot({f"token_mixer.{layer}".rstrip("."): cost for layer, cost in layers.items()})
    for slot, macs in SLOTS[name].items():
        assert slots[f"token: {slot}"].macs == macs
    assert total(slots.values()) == total(layers.values())


# 32 channels in heads of 32 (linear attention: 16) on a map of 8×8
STATES = {
    "attention": 2 * N * 32,
    "gelu": 2 * N * 32,
    "linear_attention": 32 * (16 + 1),
    "hydra_attention": 32,
    "xca": 32 * 32 + 2 * 32,
    "neighbourhood_attention": 2 * 49 * 32,
    "relative_attention": 49 * 32,
    "ffn": 0,
    "ffnified_attention": 2 * 49 * 32,
    "mlp_mixer": N * 32 + 2 * N * 32,
    "external_attention": 64,
    "swiftformer": 32 + 1,
    "moganet": 32 + 25 * 32 + 25 * 12 + 49 * 16,
    "pooling": 9 * 32,
    "random_mixing": N * 32,
    "identity": 0,
    "gated_attention": 2 * N * 32,
    "differential_attention": 2 * N * 32,
    "agent_attention": 49 * 32 + 49 * 33 + 9 * 32,  # agents; their values and a softmax's sum; the local path
    "slide_attention": 2 * 9 * 32,
    "inline": 32 * 32 + 2 * 32 + 9 * 32 + 32,  # two means; the local path; the mean that makes its kernel
    "rala": 32 * 32 + 32 + 33 + 25 * 32,  # the mean query and a softmax's sum
    "polaformer": 64 * 32 + 64 + 25 * 32,
    "non_causal_ssd": 64 * 64 + 9 * 64 * 3,
    "delta_net": 32 * 32,
    "lsnet": 49 * 16 + 2 * 4 + 9 * 32,
    "efficient_vim": 64 * 33 + 9 * 64 * 3,
    "global_filter": N * 32,
}


@pytest.mark.parametrize("name", STATES)
def test_state_sizes(name):
    mixer = {**PRESETS["attention"], "activation": "gelu"} if name == "gelu" else name
    built = build_mixer(resolve_mixer(mixer), Site(32, 8, 8))
    assert count(built, (32, 8, 8)).state_size == STATES[name]
    if isinstance(built, MetaMixer) and name in ("attention", "gelu", "gated_attention", "differential_attention"):
        slots = MetaMixer(resolve_mixer(mixer), Site(32, 8, 8))
        assert count(slots, (32, 8, 8)).state_size == STATES[name]  # without the fast path


def test_patches_hold_nothing_of_others():
    assert count(nn.Conv2d(3, 8, 4, 4), (3, 8, 8)).state_size == 0
    assert count(timm.create_model("vit_tiny_patch16_224"), (3, 224, 224)).state_size == 12 * 2 * 197 * 192


def test_a_window_holds_its_own_tokens():
    swin = timm.create_model("swin_tiny_patch4_window7_224")
    windows = 2 * 49 * (2 * 96 + 2 * 192 + 6 * 384 + 2 * 768)
    assert count(swin, (3, 224, 224)).state_size == windows
    replace_mixers(swin, "*", "attention")
    assert count(swin, (3, 224, 224)).state_size == windows


@pytest.fixture(scope="module")
def mini():
    model = timm.create_model("ffnet_mini", num_classes=10)
    return model, by_layer(model, (3, 16, 16))


def test_stages_and_slots_sum_to_the_network(mini):
    model, layers = mini
    whole = count(model, (3, 16, 16))
    assert whole.parameters == sum(p.numel() for p in timm.models.reparameterize_model(model).parameters())
    for groups in (by_stage(layers, model), by_slot(layers)):
        assert total(groups.values()) == whole
    stages = by_stage(layers, model)
    assert list(stages) == ["stem", "stages.0", "downsampling", "stages.1", "stages.2", "stages.3", "norm", "head"]
    width = CONFIGS["ffnet_mini"].stages[0].width
    # one block on a map of 16×16: 1×1, two depthwise 3×3; depthwise 7×7, two 1×1 of three times the width
    assert stages["stages.0"].macs == 256 * width * (width + 2 * 9 + 49 + 2 * 3 * width)
    assert stages["head"].macs == 10 * CONFIGS["ffnet_mini"].stages[3].width


def test_foreign_networks_go_by_their_first_modules():
    network = nn.Sequential()
    network.add_module("embed", nn.Conv2d(3, 4, 1))
    network.add_module("blocks", nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 1)))
    stages = by_stage(by_layer(network, (3, 2, 2)), network)
    assert {name: cost.macs for name, cost in stages.items()} == {"embed": 48, "blocks.0": 64, "blocks.1": 128}


def test_the_table_says_what_is_counted(mini):
    console = Console(record=True, width=160, file=io.StringIO())
    print_costs(Network("ffnet_mini", mini[0], (3, 16, 16)), layers=True, console=console)
    text = console.export_text()
    for word in ("stages.2", "token: coefficient-value", "stages.0.blocks.0.channel_mixer.query_key.key", "16 bits"):
        assert word in text


def test_what_is_folded_already_costs_the_same():
    """FastViT's mixers, large kernels and position embeddings can be folded but once."""
    model = timm.create_model("fastvit_ma36")
    once = timm.models.reparameterize_model(model.eval())
    assert count(once, (3, 64, 64)) == count(model, (3, 64, 64))
