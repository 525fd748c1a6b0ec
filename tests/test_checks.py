"""The contract over every preset and baseline, and on operations that break one promise each."""

import importlib.util
import inspect
import io
import json
import os

import numpy as np
import pytest
import torch
from rich.console import Console
from test_commands import launch
from torch import nn

from metamixer import (
    Activation,
    Baseline,
    ConfigError,
    Layout,
    MetaMixer,
    OperationConfig,
    Query,
    QueryKey,
    Site,
    build_mixer,
    register,
)
from metamixer.checks import PROMISES, check, find, report
from metamixer.cost import by_layer
from metamixer.layers import ConvNorm
from metamixer.operation import REGISTRY, Coefficients
from metamixer.ops.activation import Softmax
from metamixer.ops.dot_product import ScaledDot
from metamixer.ops.values import Matmul
from metamixer.plugins import load_module
from metamixer.presets import BASELINES, PRESETS
from metamixer.slots import FAST_PATHS, fast_path

MIXERS = [*PRESETS, *(f"baseline.{name}" for name in BASELINES)]
# Converting unrolled windows takes 10 s, all mixers a minute: METAMIXER_ALL_COREML=1 converts the others too.
CONVERTED = ["attention", "linear_attention", "xca", "ffnified_attention", "mambaout", "differential_attention"]
if os.environ.get("METAMIXER_ALL_COREML"):
    # a Fourier transform, triangular systems, maps of rank 6
    refused = ("baseline.global_filter", "delta_net", "gated_delta_net", "slide_attention")
    CONVERTED = [name for name in MIXERS if name not in refused]


def failures(checks):
    assert all(row.detail and "\n" not in row.detail for row in checks)
    return [row.name for row in checks if row.passed is False]


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_keeps_the_contract(name):
    checks = check(name, coreml=False)
    assert [row for row in checks if row.passed is False] == []
    assert [row.name for row in checks] == ["builds", *(p for p in PROMISES if p != "Core ML")]
    rows = {row.name: row for row in checks}
    fast = ("attention", "linear_attention", "hydra_attention", "gated_attention", "rmt", "mlla", "inline", "mala")
    fast += ("differential_attention", "rala", "polaformer", "non_causal_ssd", "delta_net", "gated_delta_net", "shvit")
    folds = ("convnext_ffn", "ffnified_attention", "starnet", "baseline.rep_mixer", "shvit", "lsnet")
    assert (rows["fast path"].passed, rows["folding"].passed) == (name in fast or None, name in folds or None)


@pytest.mark.skipif(importlib.util.find_spec("coremltools") is None, reason="needs the deploy extra")
@pytest.mark.parametrize("name", CONVERTED)
def test_mixers_convert_to_core_ml(name, monkeypatch):
    only = {"Core ML": PROMISES["Core ML"]}
    monkeypatch.setattr("metamixer.checks.PROMISES", only)
    converted = check(name)[-1]
    assert converted.name == "Core ML" and converted.passed, converted.detail


def test_without_coremltools_conversion_is_not_checked(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    converted = check("pooling")[-1]
    assert (converted.passed, converted.detail) == (None, "not checked: install the deploy extra")


# ---- what is checked


@pytest.mark.parametrize(
    "name, label",
    [
        ("xca", "preset 'xca'"),
        ("pooling", "baseline 'pooling'"),
        ("softmax", "activation operation 'softmax' in the mixer 'attention'"),
        ("query_key.depthwise", "query_key operation 'depthwise' in the mixer 'ffnified_attention'"),
        ("l1_norm", "activation operation 'l1_norm' in the mixer 'linear_attention'"),
    ],
)
def test_what_a_name_stands_for(name, label):
    assert find(name).label == label


def test_slots_are_checked_as_they_are():
    slots = {**PRESETS["ffn"], "query_key": {"name": "linear", "expansion": 2.0}}
    assert failures(check(slots, dim=16, coreml=False)) == []
    assert check({"name": "pooling", "kernel_size": 5}, coreml=False)[0].passed


@pytest.mark.parametrize(
    "value, reason",
    [
        ("nope", "no mixer, operation or task 'nope'; one of your own needs @register"),
        ("sofmax", "no mixer, operation or task 'sofmax'; did you mean 'softmax'?"),
        ("recal", "no mixer, operation or task 'recal'; did you mean 'recall'?"),
        ("depthwise", "ask for query.depthwise or query_key.depthwise or coefficient_value.depthwise or baseline."),
        ("linear", "ask for query.linear or query_key.linear or coefficient_value.linear"),
        ("query_key.softmax", "no mixer, operation or task 'query_key.softmax'"),
        ({**PRESETS["ffn"], "activation": "softmax"}, "accepts"),
        (3, "a mixer is a preset's name"),
    ],
)
def test_what_is_no_mixer_is_one_row(value, reason):
    (row,) = check(value)
    assert (row.name, row.passed) == ("builds", False) and reason in row.detail
    with pytest.raises(ConfigError):
        find(value)


def test_a_width_that_does_not_fit_is_one_row():
    (row,) = check("attention", dim=48)
    assert "48 channels do not divide into heads of 32" in row.detail


# ---- broken operations


class BatchStatistic(Activation):
    """Centres over the batch."""

    name = "batch_statistic"

    def forward(self, scores):
        return scores - scores.mean(0, keepdim=True)


class ForgetsTheNorm(ConvNorm):
    def fuse(self):
        conv = nn.Conv2d(self.conv.in_channels, self.conv.out_channels, 1).to(self.conv.weight)
        conv.load_state_dict({"weight": self.conv.weight, "bias": self.norm.bias})
        return conv


class FoldsWrongly(Query):
    name = "folds_wrongly"

    def __init__(self, config, site):
        super().__init__(config, site)
        self.out_dim = site.dim
        self.proj = ForgetsTheNorm(site.dim, site.dim)

    def forward(self, x):
        return self.proj(x)


class Unscaled(ScaledDot):
    name = "unscaled"


class UnscaledAttention(MetaMixer):
    """Forgets that its operands are to be multiplied by something else than the slots say."""

    def forward(self, x):
        q, k = self.query_key.operands(self.query(x), x)
        v = self.coefficient_value.values(x)
        summed = self.coefficient_value.operand(v, x)
        scores = 2.0 * q.transpose(-2, -1) @ k
        return self.coefficient_value.merge(summed @ scores.softmax(-1).transpose(-2, -1), v, x)


class DeadParameter(Activation):
    name = "dead_parameter"

    def __init__(self, config, site, coefficients):
        super().__init__(config, site, coefficients)
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, scores):
        return scores.relu() * self.scale


class PlainNorm(Query):
    name = "plain_norm"

    def __init__(self, config, site):
        super().__init__(config, site)
        self.out_dim = site.dim
        self.conv, self.norm = nn.Conv2d(site.dim, site.dim, 1), nn.BatchNorm2d(site.dim)

    def forward(self, x):
        return self.norm(self.conv(x))


class DrawsElsewhere(Activation):
    """Its values follow from no seed of torch's."""

    name = "draws_elsewhere"

    def __init__(self, config, site, coefficients):
        super().__init__(config, site, coefficients)
        self.scale = nn.Parameter(torch.full((1,), np.random.rand()))

    def forward(self, scores):
        return scores * self.scale


class InPlace(Activation):
    name = "in_place"

    def forward(self, scores):
        return scores.relu_()


class Scribbles(Baseline):
    """Leaves in its input what the residual sum would add again."""

    name = "scribbles"

    def forward(self, x):
        return x.mul_(0.5)


class LaidOutAsBuilt(Activation):
    """It views its map, which works on contiguous ones alone."""

    name = "laid_out_as_built"

    def forward(self, scores):
        return scores.view(scores.shape[0], -1).sigmoid().view(scores.shape)


class Fourier(Activation):
    """A low-pass filter, by an operation that nothing counts."""

    name = "fourier"

    @classmethod
    def accepts(cls, config):
        return frozenset({Layout.MAP})

    def forward(self, scores):
        spectrum = torch.fft.rfft(scores.float())
        return torch.fft.irfft(spectrum * 0.5, n=scores.shape[-1]).type_as(scores)


class Sinc(Activation):
    name = "sinc"

    def forward(self, scores):
        return torch.sinc(scores)


class SecretlyFixed(QueryKey):
    """Tied to the size of its map, and does not say so."""

    name = "secretly_fixed"
    makes = Layout.MAP

    def __init__(self, config, site, query_dim):
        super().__init__(config, site, query_dim)
        self.coefficients = Coefficients(Layout.MAP, query_dim)
        self.position = nn.Parameter(torch.zeros(site.height, site.width))

    def forward(self, q, x):
        return q + self.position


class ForgetsItsHeads(QueryKey):
    """One matrix of scores, which the matmul behind it takes for those of all heads."""

    name = "forgets_its_heads"
    makes = Layout.PAIRS

    def __init__(self, config, site, query_dim):
        super().__init__(config, site, query_dim)
        self.coefficients = Coefficients(Layout.PAIRS, query_dim, heads=4)
        self.key = nn.Conv2d(site.dim, query_dim, 1)

    def forward(self, q, x):
        return (q.flatten(2).transpose(1, 2) @ self.key(x).flatten(2)).unsqueeze(1)


class SaysAnotherLayout(ForgetsItsHeads):
    name = "says_another_layout"
    makes = Layout.MAP

    def forward(self, q, x):
        return self.key(q)


class SaysAnotherWidth(Query):
    name = "says_another_width"

    def __init__(self, config, site):
        super().__init__(config, site)
        self.out_dim = site.dim

    def forward(self, x):
        return x[:, :1]


class Misspelt(Activation):
    name = "misspelt"

    class Config(OperationConfig):
        slope: float = 0.5

    def __init__(self, config, site, coefficients):
        super().__init__(config, site, coefficients)
        self.slope = config.slop


class OfThePast(Activation):
    """Its forward fails everywhere."""

    name = "of_the_past"

    def forward(self, scores, x):
        return scores


class NamedLikeAPreset(Activation):
    name = "ffn"

    def forward(self, scores):
        return scores.relu()


class Branches(Activation):
    """Decides by its numbers, which no graph can hold."""

    name = "branches"

    def forward(self, scores):
        return scores.relu() if scores.sum() < 1e6 else scores


class Allocates(Activation):
    name = "allocates"

    def __init__(self, config, site, coefficients):
        super().__init__(config, site, coefficients)
        self.register_buffer("factor", torch.full((1,), 0.5, device="cpu"))

    def forward(self, scores):
        return scores.relu() * self.factor


class NeedsAParameter(Activation):
    name = "needs_a_parameter"

    class Config(OperationConfig):
        slope: float

    def forward(self, scores):
        return scores


class AxisOfAMap(Activation):
    """Says that it takes every layout, and works on maps."""

    name = "axis_of_a_map"

    def forward(self, scores):
        return scores.mean((2, 3), keepdim=True).expand(-1, -1, scores.shape[2], scores.shape[3])


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    for slot, known in REGISTRY.items():
        monkeypatch.setitem(REGISTRY, slot, dict(known))
    paths = dict(FAST_PATHS)
    monkeypatch.setattr("metamixer.slots.FAST_PATHS", paths)
    monkeypatch.setattr("metamixer.mixer.FAST_PATHS", paths)
    return REGISTRY


@pytest.mark.parametrize(
    "operation, broken, reason",
    [
        (BatchStatistic, ["batch independence"], "in eval, an image's output depends on the others"),
        (FoldsWrongly, ["folding"], "the folded form differs by"),
        (Unscaled, ["fast path", "cost"], "UnscaledAttention differs from the slots by"),
        (DeadParameter, ["gradients"], "none reaches activation.shift"),
        (DrawsElsewhere, ["initial values"], "two of one seed differ in activation.scale"),
        (InPlace, ["shapes"], "at 8×8: activation 'in_place' changes its input in place"),
        (
            Scribbles,
            ["shapes", "gradients", "batch independence", "channels-last", "autocast bf16"],
            "at 8×8: it changes its input in place",
        ),
        (Fourier, ["cost"], "multiply-adds not counted for aten::_fft_c2r (1×), aten::_fft_r2c (1×)"),
        (LaidOutAsBuilt, ["channels-last"], "RuntimeError: view size is not compatible"),
        (SecretlyFixed, ["shapes"], "at 7×5, built for 8×8 (a mixer tied to its size declares fixed_size = True): "),
        (
            ForgetsItsHeads,
            ["shapes"],
            "at 8×8: query_key 'forgets_its_heads' gives scores 3×1×64×64, and its coefficients say 3×4×64×64",
        ),
        (SaysAnotherLayout, ["shapes"], "'says_another_layout' makes map, and its coefficients say token pairs"),
        (Misspelt, ["builds"], "AttributeError: 'Config' object has no attribute 'slop'"),
        (Branches, ["torch.export", "torch.fx", "meta"], "data-dependent"),
        (Allocates, ["meta"], "activation.factor is allocated"),
        (AxisOfAMap, ["layouts"], "neighbourhood: "),
        (NeedsAParameter, ["builds"], "missing key 'slope'"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_broken_operation_fails_where_it_is_broken(registry, operation, broken, reason):
    register(operation)
    if operation is Unscaled:
        fast_path(Unscaled, Softmax, Matmul)(UnscaledAttention)
    checks = check(operation.name, dim=32, coreml=False)
    assert failures(checks) == broken
    assert reason in next(row.detail for row in checks if row.name == broken[0])


def test_errors_of_compilers_keep_type_and_place(registry):
    register(Branches)
    rows = {row.name: row.detail for row in check("branches", dim=32, coreml=False)}
    line = inspect.getsourcelines(Branches.forward)[1] + 1
    assert rows["torch.export"].startswith(f"{__file__}:{line}: GuardOnDataDependent")
    assert rows["torch.fx"].startswith(f"{__file__}:{line}: TraceError: symbolically traced variables")


def test_the_start_of_a_branch_is_a_row():
    rows = {row.name: row.detail for row in check("baseline.identity", coreml=False)}
    assert rows["branch"] == "starts with 1 (ffnet), 1 (fan_in) of its input's spread"


def test_a_plain_norm_folds_into_its_convolution(registry):
    register(PlainNorm)
    rows = {row.name: row for row in check("plain_norm", dim=32, coreml=False)}
    assert rows["folding"].passed and "stay" not in rows["folding"].detail
    layers = by_layer(build_mixer(find("plain_norm", 32).config, Site(32, 8, 8)), (32, 8, 8))
    assert layers["query.conv"].parameters == 32 * 32 + 32 and "query.norm" not in layers


def test_queries_are_as_wide_as_they_say(registry):
    register(SaysAnotherWidth)
    shapes = next(row for row in check("says_another_width", coreml=False) if row.name == "shapes")
    assert shapes.detail == "at 8×8: query 'says_another_width' gives 3×1×8×8, and says out_dim 64"


def test_an_error_has_its_place_in_the_users_code(registry):
    register(Misspelt)
    line = inspect.getsourcelines(Misspelt.__init__)[1] + 2
    assert check("misspelt")[0].detail.startswith(f"{__file__}:{line}: AttributeError")


def test_an_operation_named_like_a_preset_is_asked_for_by_its_slot(registry):
    register(NamedLikeAPreset)
    with pytest.raises(ConfigError, match=r"'ffn' is a preset and an operation: ask for activation\.ffn"):
        find("ffn")
    assert find("activation.ffn").label == "activation operation 'ffn' in the mixer 'ffnified_attention'"


def test_an_operation_is_checked_with_the_parameters_that_are_given(registry):
    register(NeedsAParameter)
    found = find({"name": NeedsAParameter.name, "slope": 1.5})
    assert found.config.activation.slope == 1.5 and found.label.startswith("activation operation")
    assert (
        find({"name": "query_key.depthwise", "kernel_size": 3}).config.query_key.kernel_size == 3
    )  # in a preset, with 7
    assert find({"name": "pooling", "kernel_size": 5}).config.kernel_size == 5
    assert find({"name": "ffn"}).config == find("ffn").config
    for value, line in (
        ({"name": NeedsAParameter.name, "slope": "steep"}, "slope: "),
        ({"name": NeedsAParameter.name, "slope": 1.0, "beta": 1.0}, "unknown key 'beta'"),
        ({"name": "ffn", "expansion": 2.0}, "preset 'ffn' takes no parameters"),
    ):
        (row,) = check(value)
        assert not row.passed and line in row.detail


def test_parameters_come_as_json_on_the_command_line(registry, monkeypatch):
    monkeypatch.setattr("metamixer.checks.PROMISES", {})
    register(NeedsAParameter)
    shown = launch("check", json.dumps({"name": NeedsAParameter.name, "slope": 1.5})).stdout
    assert "1 of 1 hold" in shown
    slots = {"query": "linear", "query_key": "depthwise", "activation": "gelu", "coefficient_value": "depthwise"}
    assert "1 of 1 hold" in launch("check", json.dumps(slots)).stdout
    assert "unknown qk" in launch("check", json.dumps(slots | {"qk": 1}), code=1).stdout
    error = launch("check", "{name: sine}", code=2).stderr
    assert error.startswith("error: {name: sine}: not JSON") and error.count("\n") == 1


def test_core_ml_names_what_it_cannot_convert(registry, monkeypatch):
    pytest.importorskip("coremltools")
    register(Sinc)
    monkeypatch.setattr("metamixer.checks.PROMISES", {"Core ML": PROMISES["Core ML"]})
    checks = check("sinc")
    assert failures(checks) == ["Core ML"] and "'sinc'" in checks[-1].detail


# ---- the report


def told(name):
    console = Console(record=True, width=120, file=io.StringIO())
    return report(check(name, dim=32, coreml=False), console), console.export_text()


def test_report(registry):
    held, text = told("xca")
    assert held and "12 of 12 hold" in text
    register(DeadParameter)
    held, text = told("dead_parameter")
    assert not held and "not: gradients" in text
    register(OfThePast)
    held, text = told("of_the_past")
    assert not held and "missing 1 required positional argument" in text
    held, text = told("nope")
    assert not held and "0 of 1 hold; not: builds" in text


# ---- modules


def test_a_users_file_declares_what_torch_does_not_tell(registry, tmp_path):
    lines = [
        "import torch",
        "from metamixer import Activation, Layout, register",
        "from metamixer.counters import register_cost",
        inspect.getsource(Fourier),
        "    def state_size(self, scores):",
        "        return scores.numel()",
        "",
        "register(Fourier)",
        "register_cost(Fourier, lambda module, scores: 5.0 * scores.numel() + 0.1)",
    ]
    (tmp_path / "mine.py").write_text("\n".join(lines))
    load_module(tmp_path / "mine.py")
    assert failures(check("fourier", dim=32, coreml=False)) == []
    layers = by_layer(build_mixer(find("fourier", 32).config, Site(32, 8, 8)), (32, 8, 8))
    assert (layers["activation"].macs, layers["activation"].state_size) == (5 * 32 * 64, 32 * 64)
    assert isinstance(layers["activation"].macs, int)  # result.json and the frame hold whole numbers


OPERATION = """
from metamixer import Activation, register

@register
class Halved(Activation):
    name = "halved"
    def forward(self, scores):
        return scores / {by}
"""


def test_a_file_is_loaded_again_where_it_changed(registry, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OPERATION.format(by=2))
    first = load_module(path)
    assert load_module(path) is first and REGISTRY["activation"]["halved"] is first.Halved
    path.write_text(OPERATION.format(by=4))
    assert load_module(path) is not first
    assert failures(check("halved", dim=32, coreml=False)) == []
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text(OPERATION.format(by=3))
    with pytest.raises(ConfigError, match=r"'halved' is already registered by Halved of .*mine\.py"):
        load_module(str(tmp_path / "other" / "mine.py"))


@pytest.mark.parametrize(
    "text, reason",
    [
        ("x = 1\n1 / 0", r"bad\.py:2: ZeroDivisionError: division by zero"),
        ("def f(:", r"bad\.py:1: SyntaxError"),
        ("import nothing_like_this", r"bad\.py:1: ModuleNotFoundError"),
        (OPERATION.format(by=2).replace("halved", "softmax"), r"bad\.py:4: .*'softmax' is already registered"),
    ],
)
def test_a_broken_module_says_where(registry, tmp_path, text, reason):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ConfigError, match=reason) as error:
        load_module(str(tmp_path / "bad.py"))
    assert "\n" not in str(error.value)
