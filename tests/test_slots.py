"""The contract over the whole registry: each combination that fits works, others are refused in one line."""

import itertools

import pytest
import torch
from timm.layers import RelPosBias, apply_rot_embed_cat, build_rotary_pos_embed
from timm.models import reparameterize_model
from torch import nn

from metamixer import (
    Activation,
    Baseline,
    CoefficientValue,
    ConfigError,
    Layout,
    Query,
    QueryKey,
    Site,
    build_mixer,
    digest,
    isotropic,
    override,
    register,
    resolve_mixer,
)
from metamixer.cost import count
from metamixer.fast_paths import ChunkedAttention
from metamixer.operation import REGISTRY, resolve
from metamixer.ops.activation import Softmax
from metamixer.ops.dot_product import ScaledDot
from metamixer.ops.position import RelativeBias, RotaryTable, rotate
from metamixer.ops.values import Matmul
from metamixer.slots import FAST_PATHS, MetaMixer, accepts, fast_path, makes, takes

DIM = 32
SIZES = [(8, 8), (7, 5)]
# Parameters without a default, or that keep the channels, so that all values fit; small heads and windows.
PARAMETERS = {
    ("query_key", "linear"): {"expansion": 1.0},
    ("query_key", "memory"): {"slots": DIM},
    ("query_key", "scaled_dot"): {"head_dim": 8},
    ("query_key", "cross_covariance"): {"head_dim": 8},
    ("query_key", "neighbourhood"): {"head_dim": 8, "kernel_size": 3},
    ("query_key", "slide"): {"head_dim": 8},
    ("query_key", "polarity"): {"head_dim": 8},
    ("query_key", "delta"): {"head_dim": 8},
    ("coefficient_value", "state_space"): {"expansion": 1.0, "head_dim": 4},
    ("query", "variable_mlp"): {"variables": 4},
    ("query", "variable_depthwise"): {"variables": 4, "kernel_size": 5, "small_kernel": 3},
    ("query_key", "variable_linear"): {"variables": 4, "expansion": 1.0},
    ("coefficient_value", "variable_sum"): {"variables": 4},
}
# Every value of every parameter that changes what is built, one operation at a time.
VARIANTS = {
    "query": [
        {"name": "linear", "norm": True},
        {"name": "linear", "expansion": 2.0},
        *({"name": "linear", "activation": a} for a in ("relu", "gelu", "silu")),
        {"name": "linear", "expansion": 0.5, "part": 0.25, "norm": True, "kernel_size": 3},
        *({"name": "linear", "normalize": n} for n in ("channels", "tokens", "layer")),
        *({"name": "depthwise", "norm": norm, "small_kernel": 3} for norm in (False, True)),
        {"name": "depthwise", "kernel_size": 3, "normalize": "layer"},
    ],
    "query_key": [
        {"name": "linear", "expansion": 1.0, "norm": True},
        {"name": "depthwise", "norm": True, "small_kernel": 3},
        {"name": "depthwise", "norm": True, "small_kernel": "strips"},
        {"name": "large_kernel", "kernel_size": 3, "dilated_kernel": 5, "dilation": 2},
        {"name": "multi_scale", "kernel_size": 3, "strips": [5, 9]},
        {"name": "token_linear", "open": True},
        {"name": "hadamard", "pooled": True, "activation": "relu", "normalize": "channels"},
        {"name": "scaled_dot", "head_dim": 1, "activation": "relu", "normalize": "tokens", "scale": False},
        {"name": "scaled_dot", "head_dim": 8, "bias": "relative", "rotary": True},
        {"name": "scaled_dot", "head_dim": 8, "bias": "decay", "kernel_size": 3, "activation": "elu_plus_one"},
        {"name": "scaled_dot", "head_dim": None, "norm": True, "part": 0.5},
        {"name": "scaled_dot", "head_dim": 8, "pool": 3, "weighted": True},
        {"name": "scaled_dot", "head_dim": 8, "pool": 2, "keys_from": "query"},
        {"name": "delta", "head_dim": 8, "gated": True, "activation": "silu"},
        {"name": "memory", "slots": DIM, "kernel_size": 3},
        {"name": "focal", "kernel_size": 5, "levels": 1},
    ],
    "activation": [{"name": name, "over_keys": True} for name in ("relu", "gelu", "sigmoid")],
    "coefficient_value": [
        {"name": "matmul", "projection": False},
        {"name": "matmul", "linear": False, "local_kernel": 3, "gate": "sigmoid"},
        {"name": "matmul", "kernel_size": 3, "activation": "relu", "local_kernel": 5, "local_from_input": True},
        {"name": "matmul", "head_norm": 0.5, "layer_norm": True, "gate": "silu"},
        {"name": "windowed_sum", "local_kernel": 3, "gate": "identity", "head_norm": 1.0},
        {"name": "channel_matmul", "local_kernel": 3, "gate": "silu"},
        {"name": "state_space", "expansion": 1.0, "head_dim": 4, "layer_norm": True, "local_kernel": 3},
        {"name": "hadamard", "values_from": "query", "linear": False, "projection": False},
        {"name": "hadamard", "kernel_size": 5, "conv_ratio": 0.5, "activation": "gelu"},
        {"name": "hadamard", "kernel_size": 3, "projection_norm": True, "projection_kernel": 3},
        {"name": "linear", "norm": True},
        {"name": "linear", "bias": False},
        {"name": "depthwise", "norm": True, "small_kernel": 3},
    ],
    "baseline": [
        {"name": "depthwise", "norm": True, "small_kernel": 3},
        {"name": "rep_mixer", "kernel_size": 7},
        {"name": "recursive_pyramid", "kernel_size": 3, "levels": 1},
    ],
}


def operations(slot, variants=False):
    plain = [{"name": name, **PARAMETERS.get((slot, name), {})} for name in shipped(slot)]
    return plain + (VARIANTS[slot] if variants else [])


def shipped(slot):
    return [name for name, cls in REGISTRY[slot].items() if cls.__module__.startswith("metamixer.")]


def fits(key, activation, value):
    layout = makes(resolve("query_key", key))
    return layout in accepts(resolve("activation", activation)) and layout == takes(resolve("coefficient_value", value))


def triples(**variants):
    slots = ("query_key", "activation", "coefficient_value")
    return itertools.product(*(operations(slot, variants.get(slot, False)) for slot in slots))


def mixer_of(key, activation, value, query="linear"):
    slots = {"query": query, "query_key": key, "activation": activation, "coefficient_value": value}
    return resolve_mixer(slots)


def label(operation):
    parts = [operation["name"], *(f"{key}={value}" for key, value in operation.items() if key != "name")]
    return " ".join(parts)


def randomise(module):
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.4 if tensor.ndim > 1 else 0.7)
    return module


def check(config, size):
    """Shape, gradients, batch independence, folding and the fast path of a mixer at one size."""
    mixer = randomise(build_mixer(config, Site(DIM, *size))).double()
    x = torch.randn(3, DIM, *size, dtype=torch.double, requires_grad=True)
    y = mixer(x)
    assert y.shape == x.shape and y.isfinite().all()
    y.square().sum().backward()
    for name, tensor in [("x", x), *mixer.named_parameters()]:
        assert tensor.grad is not None and tensor.grad.isfinite().all(), name
    mixer.eval()
    with torch.no_grad():
        y = mixer(x)
        torch.testing.assert_close(mixer(x[1:2]), y[1:2])
        folded = reparameterize_model(nn.Sequential(mixer))
        torch.testing.assert_close(folded(x), y)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        if isinstance(mixer, MetaMixer):
            trace = mixer.trace(x)
            torch.testing.assert_close(trace.output, y)
            assert trace.scores.shape == shape_of(mixer.query_key.coefficients, size)
            assert trace.coefficients.shape == shape_of(mixer.activation.coefficients, size)
    return mixer


def shape_of(made, size):
    n, k, d = size[0] * size[1], made.kernel_size, made.channels // made.heads
    return {
        Layout.MAP: (3, made.channels, *size),
        Layout.PAIRS: (3, made.heads, n, made.pool**2 or n),
        Layout.NEIGHBOURHOOD: (3, made.heads, k * k, *size),
        Layout.CHANNELS: (3, made.heads, d, d),
    }[made.layout]


FITTING = [triple for triple in triples() if fits(*triple)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("key, value", sorted({(k["name"], v["name"]) for k, _, v in FITTING}))
def test_every_combination_that_fits(key, value, size):
    for triple in FITTING:
        if (triple[0]["name"], triple[2]["name"]) == (key, value):
            check(mixer_of(*triple), size)


def test_every_cell_of_dynamic_and_static_is_filled():
    cells = {
        (REGISTRY["query_key"][k["name"]].source, REGISTRY["coefficient_value"][v["name"]].source)
        for k, _, v in FITTING
    }
    assert cells == set(itertools.product(("dynamic", "static"), repeat=2))


@pytest.mark.parametrize("query", operations("query", variants=True), ids=label)
def test_queries(query):
    """Each in front of keys of every layout and of a gate by the query."""
    partners = [
        ({"name": "scaled_dot", "head_dim": 8}, "softmax", "matmul"),
        ({"name": "neighbourhood", "head_dim": 8, "kernel_size": 3}, "softmax", "windowed_sum"),
        ({"name": "cross_covariance", "head_dim": 8}, "softmax", "channel_matmul"),
        ({"name": "linear", "expansion": 2.0}, "gelu", {"name": "hadamard", "values_from": "query"}),
        ("depthwise", "gelu", "linear_skip"),
    ]
    for partner in partners:
        check(mixer_of(*partner, query=query), SIZES[1])


@pytest.mark.parametrize("slot", ["query_key", "activation", "coefficient_value"])
def test_parameters_of_operations(slot):
    """Each variant with the first partners that it fits."""
    position = ["query_key", "activation", "coefficient_value"].index(slot)
    for variant in VARIANTS[slot]:
        fitting = (t for t in triples(**{slot: True}) if t[position] == variant and fits(*t))
        check(mixer_of(*next(fitting)), SIZES[1])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("baseline", operations("baseline", variants=True), ids=label)
def test_baselines(baseline, size):
    check(resolve_mixer(baseline), size)


def test_fixed_size_is_declared():
    """Operations that do not say `fixed_size` take maps of any size."""
    for key, activation, value in FITTING:
        classes = (REGISTRY["query_key"][key["name"]], REGISTRY["coefficient_value"][value["name"]])
        if activation["name"] not in ("softmax", "gelu"):
            continue
        mixer = build_mixer(mixer_of(key, activation, value), Site(DIM, 4, 4)).eval()
        x = torch.randn(1, DIM, 6, 5)
        if any(cls.fixed_size for cls in classes):
            with pytest.raises(AssertionError, match="is built for maps of 16 tokens; build the network"):
                mixer(x)
        else:
            assert mixer(x).shape == x.shape


@pytest.mark.parametrize("activation", ["softmax", "relu", "gelu", "l1_norm", "identity"])
def test_neighbours_off_the_map_count_for_nothing(activation):
    key = {"name": "neighbourhood", "head_dim": 8, "kernel_size": 3}
    mixer = randomise(build_mixer(mixer_of(key, activation, "windowed_sum"), Site(DIM, 4, 5)))
    trace = mixer.trace(torch.randn(2, DIM, 4, 5))
    for tensor in (trace.scores, trace.coefficients):
        assert (tensor[:, :, [0, 1, 2, 3, 6], 0, 0] == 0).all()  # left of and above the first position
        assert (tensor[:, :, [5, 7, 8], 0, 0] != 0).any() and (tensor[:, :, 6:, -1, :] == 0).all()


# ---- fast paths


def test_fast_paths_are_taken_where_they_apply():
    def built(query, key, activation, value="matmul"):
        return type(build_mixer(mixer_of(key, activation, value, query), Site(DIM, 4, 4))).__name__

    relu, key = {"name": "linear", "activation": "relu"}, {"name": "scaled_dot", "head_dim": 8}
    relu_key = {**key, "activation": "relu"}
    assert built("linear", key, "softmax") == "SoftmaxAttention"
    assert built("linear", key, "identity") == "LinearAttention"
    assert built(relu, relu_key, "l1_norm") == "NormalizedLinearAttention"
    # scores of both signs have no sum that could be taken first
    assert built("linear", relu_key, "l1_norm") == "MetaMixer"
    assert built(relu, key, "l1_norm") == "MetaMixer"
    assert built({**relu, "normalize": "layer"}, relu_key, "l1_norm") == "MetaMixer"
    assert built("linear", key, "relu") == "MetaMixer"
    part, part_key = {"name": "linear", "part": 0.25, "channels": 8}, {"name": "scaled_dot", "norm": True, "part": 0.25}
    assert built(part, {**part_key, "head_dim": None}, "softmax", "part_matmul") == "PartAttention"
    assert built(part, {**part_key, "head_dim": 4}, "softmax", "part_matmul") == "MetaMixer"
    assert built("linear", {**part_key, "head_dim": None}, "softmax", "part_matmul") == "MetaMixer"


@pytest.mark.parametrize("head_dim", [1, 8])
@pytest.mark.parametrize("feature", ["identity", "relu"])
@pytest.mark.parametrize("activation", ["softmax", "identity", "l1_norm"])
def test_fast_path_has_the_slots_gradients(activation, feature, head_dim):
    query = {"name": "linear", "activation": feature}
    key = {"name": "scaled_dot", "head_dim": head_dim, "activation": feature}
    config, site = mixer_of(key, activation, "matmul", query), Site(DIM, 7, 5)
    mixer = randomise(build_mixer(config, site)).double()
    x = torch.randn(2, DIM, 7, 5, dtype=torch.double)
    gradients = []
    for output in (mixer(x), mixer.trace(x).output):
        gradients.append(torch.autograd.grad(output.square().sum(), list(mixer.parameters())))
    assert list(mixer.state_dict()) == list(MetaMixer(config, site).state_dict())
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow)


def test_one_normalisation_trains_as_three():
    """Equal outputs, gradients, running statistics and costs, of what is read and written apart."""
    config, site, x = resolve_mixer("shvit"), Site(DIM, 7, 5), torch.randn(2, DIM, 7, 5, dtype=torch.double)
    found = []
    for mixer in (build_mixer(config, site).double(), MetaMixer(config, site).double()):
        torch.manual_seed(0)
        randomise(mixer)
        image = x.clone().requires_grad_()
        y = mixer(image)
        gradients = torch.autograd.grad(y.square().sum(), [image, *mixer.parameters()])
        cost = count(mixer, (DIM, 7, 5))
        costs = cost.parameters, cost.macs, cost.activations, cost.state_size
        found.append((y, *gradients, mixer.state_dict(), costs))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("activation", ["gelu", {"name": "relu", "over_keys": True}, "star_relu"])
def test_large_maps_go_some_queries_at_a_time(activation):
    """Equal to the slots, forwards, backwards and scripted, at a fraction of their memory."""
    config, site = mixer_of({"name": "scaled_dot", "head_dim": 8}, activation, "matmul"), Site(DIM, 48, 40)
    mixer = build_mixer(config, site).double().train()
    assert type(mixer) is ChunkedAttention and mixer.chunks == 2
    assert type(build_mixer(config, Site(DIM, 32, 32))) is MetaMixer
    x = torch.randn(1, DIM, 48, 40, dtype=torch.double)
    gradients = []
    for output in (mixer(x), mixer.trace(x).output):
        gradients.append((output.detach(), *torch.autograd.grad(output.square().sum(), list(mixer.parameters()))))
    torch.testing.assert_close(*gradients)
    scripted, traced = torch.jit.script(mixer.eval()), torch.fx.symbolic_trace(mixer)
    torch.testing.assert_close(scripted(x), gradients[0][0])
    torch.testing.assert_close(traced(x), gradients[0][0])
    assert mixer(x[..., :3, :5]).shape == (1, DIM, 3, 5)
    size = (DIM, 48, 40)
    chunked, slots = count(mixer, size), count(MetaMixer(config, site).double(), size)
    assert (chunked.macs, chunked.activations) == (slots.macs, slots.activations)
    assert chunked.largest * 2 == slots.largest == DIM // 8 * (48 * 40) ** 2


# ---- registering


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    for slot, known in REGISTRY.items():
        monkeypatch.setitem(REGISTRY, slot, dict(known))
    for triple in [*FAST_PATHS]:
        monkeypatch.setitem(FAST_PATHS, triple, FAST_PATHS[triple])
    return REGISTRY


def refused(action):
    with pytest.raises(ConfigError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_users_operation_and_its_fast_path(registry):
    class Cubed(Activation):
        """Scores³."""

        name = "cubed"

        def forward(self, scores):
            return scores**3

    register(Cubed)

    class CubedAttention(MetaMixer):
        def forward(self, x):
            q, k = self.query_key.operands(self.query(x), x)
            v = self.coefficient_value.values(x)
            summed = self.coefficient_value.operand(v, x)
            return self.coefficient_value.merge(torch.einsum("bhdn,bhdm,bhcm->bhcn", q, k, summed), v, x)

    try:
        config = mixer_of({"name": "scaled_dot", "head_dim": 8}, "cubed", "matmul")
        assert type(check(config, SIZES[1])) is MetaMixer
        fast_path(ScaledDot, Cubed, Matmul)(CubedAttention)
        with pytest.raises(AssertionError):  # it leaves out the cube, which the comparison notices
            check(config, SIZES[1])
    finally:
        FAST_PATHS.pop((ScaledDot, Cubed, Matmul), None)


def test_a_fast_path_taken_twice(registry):
    class Mine(MetaMixer):
        pass

    message = refused(lambda: fast_path(ScaledDot, Softmax, Matmul)(Mine))
    known = "metamixer.fast_paths.SoftmaxAttention"
    assert f"scaled_dot, softmax, matmul already have the fast path {known}" in message


def test_registered_twice(registry):
    class Softmax(Activation):
        name = "softmax"

    message = refused(lambda: register(Softmax))
    assert "'softmax' is already registered by Softmax of metamixer.ops.activation" in message
    register(REGISTRY["activation"]["softmax"])  # the same class again is no clash


@pytest.mark.parametrize("base, attribute", [(QueryKey, "makes"), (CoefficientValue, "takes")])
def test_without_a_layout(registry, base, attribute):
    message = refused(lambda: register(type("Mine", (base,), {"name": "mine"})))
    assert f"set `{attribute}` to one of Layout.MAP, Layout.PAIRS" in message
    assert "mine" not in registry[base.slot]


@pytest.mark.parametrize("base", [Query, QueryKey, Activation, CoefficientValue, Baseline])
def test_without_a_name(registry, base):
    for name in ({}, {"name": ""}, {"name": "my.own"}):
        assert "needs a name without dots" in refused(lambda name=name: register(type("Mine", (base,), name)))


def test_a_wrong_source_or_a_count_of_nothing(registry):
    for more, line in (
        ({"source": "statc"}, "source is dynamic or static, got 'statc'"),
        ({"channel_counts": ("heads",)}, "channel_counts names heads"),
    ):
        assert line in refused(lambda more=more: register(type("Mine", (Query,), {"name": "mine", **more})))


def test_neither_operation_nor_config(registry):
    assert "derives from Query" in refused(lambda: register(nn.Identity))
    mine = type("Mine", (Query,), {"name": "mine", "Config": dict})
    assert "Config derives from OperationConfig" in refused(lambda: register(mine))


# ---- errors in configurations


def test_combinations_that_do_not_fit_are_refused():
    """The line names what does fit, and that is true."""
    refusals = [triple for triple in triples() if not fits(*triple)]
    assert refusals
    for key, activation, value in refusals:
        message = refused(lambda t=(key, activation, value): mixer_of(*t))
        layout = makes(resolve("query_key", key))
        assert f"query_key {key['name']!r} makes coefficients as {layout}" in message
        if layout not in accepts(resolve("activation", activation)):
            assert f"activation {activation['name']!r}" in message and " accepts " in message
            continue
        for slot, name in (("query_key", key["name"]), ("coefficient_value", value["name"])):
            partners = message.split(f"with {slot} {name!r} goes ")[1].split(", with")[0].split(" or ")
            other, at = ("coefficient_value", "takes") if slot == "query_key" else ("query_key", "makes")
            wanted = layout if slot == "query_key" else takes(resolve(slot, value))
            assert partners == [n for n, cls in REGISTRY[other].items() if getattr(cls, at) == wanted]


@pytest.mark.parametrize(
    "slots, expected",
    [
        ({"coefficient_value": {"name": "hadamard", "conv_ratio": 0.5}}, "set both"),
        (
            {"coefficient_value": {"name": "hadamard", "projection": False, "projection_norm": True}},
            "belong to a projection, which is off",
        ),
        ({"coefficient_value": {"name": "linear", "norm": True, "bias": False}}, "has its own bias"),
        ({"activation": 3}, "activation takes the name of an operation"),
        ({"value": "linear"}, "unknown value"),
    ],
)
def test_wrong_slots(slots, expected):
    ffn = {
        "query": "identity",
        "query_key": {"name": "linear", "expansion": 4.0},
        "activation": "gelu",
        "coefficient_value": "linear",
    }
    assert expected in refused(lambda: resolve_mixer({**ffn, **slots}))


@pytest.mark.parametrize(
    "slots, expected",
    [
        (
            ({"name": "scaled_dot", "head_dim": 24}, "softmax", "matmul"),
            "32 channels do not divide into heads of 24",
        ),
        (({"name": "linear", "expansion": 2.0}, "gelu", "depthwise"), "set the query_key's expansion to 1"),
        (({"name": "linear", "expansion": 1.5}, "gelu", "token_linear"), "expansion to a whole number"),
        (({"name": "linear", "expansion": 2.0}, "silu", "multi_order"), "set the query_key's expansion to 1"),
        (
            ({"name": "linear", "expansion": 2.0}, "gelu", {"name": "hadamard", "linear": False}),
            "values have the 32 channels of the input, coefficients 64",
        ),
        (
            ("depthwise", "gelu", {"name": "hadamard", "kernel_size": 3, "conv_ratio": 2.0}),
            "conv_ratio 2.0 of 32 channels is more than the 32 values",
        ),
        (
            ({"name": "linear", "expansion": 2.0}, "gelu", {"name": "hadamard", "projection": False}),
            "need projection=true",
        ),
        (("scaled_dot", "differential", "matmul"), "joins pairs of heads, and there are 1"),
        (
            ({"name": "scaled_dot", "head_dim": 2, "rotary": True}, "softmax", "matmul"),
            "a multiple of 4 channels, got 2",
        ),
        (({"name": "scaled_dot", "pool": 2}, "softmax", {"name": "matmul", "local_kernel": 3}), "have no local path"),
        (("scaled_dot", "identity", {"name": "state_space", "head_dim": 24}), "64 channels in heads of 24"),
    ],
)
def test_sizes_that_do_not_fit(slots, expected):
    with pytest.raises(ValueError, match=expected) as error:
        build_mixer(mixer_of(*slots), Site(DIM, 4, 4))
    assert "\n" not in str(error.value)


# ---- where tokens stand


def test_rotary_is_timms():
    cos_sin = build_rotary_pos_embed([4, 6], dim=8, in_pixels=False)
    x = torch.randn(2, 3, 24, 8)  # (B, heads, N, d)
    expected = apply_rot_embed_cat(x, torch.cat(cos_sin, -1))
    cos, sin = RotaryTable(8)(torch.zeros(1, 1, 4, 6))
    torch.testing.assert_close(rotate(x.transpose(-2, -1), cos, sin).transpose(-2, -1), expected)


def test_relative_bias_is_swins():
    """timm's table, by the offset of the query from its key; farther keys share the farthest number."""
    timm, ours = RelPosBias((3, 5), num_heads=2), RelativeBias(2, Site(8, 3, 5))
    with torch.no_grad():
        timm.relative_position_bias_table.normal_()
        ours.table.copy_(timm.relative_position_bias_table.T.reshape(2, 5, 9).flip(1, 2))
        expected = timm.get_bias()[0]
        torch.testing.assert_close(ours(torch.zeros(1, 1, 3, 5)), expected)
        larger, smaller = ours(torch.zeros(1, 1, 9, 9)), ours(torch.zeros(1, 1, 2, 2))
    assert torch.equal(larger[:, 0, 8], ours.table[:, 2, 8]) and torch.equal(larger[:, 80, 0], ours.table[:, 0, 0])
    assert torch.equal(smaller[:, 0, 3], ours.table[:, 3, 5])


def test_options_at_their_defaults_leave_hashes_as_they_were():
    """What came later is no part of a hash until it is set; what is configured says all of it."""
    plain = isotropic(1, 32, "attention")
    gated = override(plain, {"stages.0.token_mixer.coefficient_value.gate": "silu"})
    value = plain.identity()["stages"][0]["token_mixer"]["coefficient_value"]
    assert value == {"name": "matmul", "projection": True} and digest(plain) != digest(gated)
    assert plain.to_dict()["stages"][0]["token_mixer"]["coefficient_value"]["gate"] == "none"
    assert gated.identity()["stages"][0]["token_mixer"]["coefficient_value"] == {**value, "gate": "silu"}
