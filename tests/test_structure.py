"""A variant's network differs where its configuration does, and a difference that it hides is found."""

import pytest
from small import RUN
from torch import nn

from metamixer import override
from metamixer.presets import preset
from metamixer.structure import structure, unexplained
from metamixer.training.config import RunConfig, UserModule
from sweeps import Grid, Variant, load_grid, make_plan
from sweeps.grid import LoadedGrid
from sweeps.report import print_plan

MIXER = "model.stages.*.token_mixer"
ATTENTION = preset("attention")
CONV = {"name": "depthwise", "kernel_size": 3, "norm": True}
BASE = override(RUN, {f"{MIXER}.query_key": CONV, f"{MIXER}.coefficient_value": CONV})

# as in FFNet's released code, the kernel decides over the normalisation
TIED = '''
from torch import nn
from metamixer import register
from metamixer.operation import Coefficients, Layout, OperationConfig, QueryKey


@register
class Tied(QueryKey):
    """A depthwise convolution whose normalisation hangs on its kernel."""

    name = "tied"
    makes = Layout.MAP
    source = "static"

    class Config(OperationConfig):
        kernel_size: int = 3

    def __init__(self, config, site, query_dim):
        super().__init__(config, site, query_dim)
        self.coefficients = Coefficients(Layout.MAP, query_dim)
        size = config.kernel_size
        self.key = nn.Conv2d(query_dim, query_dim, size, padding=size // 2, groups=query_dim)
        self.norm = nn.BatchNorm2d(query_dim) if size == 7 else nn.Identity()

    def forward(self, q, x):
        return self.norm(self.key(q))
'''


def test_structure_is_that_of_the_modules():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    assert structure(model) == {
        "": ("Sequential", "; "),
        "0": ("Conv2d", "3, 8, kernel_size=(3, 3), stride=(1, 1); weight (8, 3, 3, 3), bias (8,)"),
        "1": ("ReLU", "; "),
    }


@pytest.mark.parametrize("name", ["ffnification", "kernel_size", "hybrids", "recipe_ingredients", "catalogue"])
def test_the_grids_change_what_they_declare(name):
    grid = load_grid(name).grid
    runs = {run.variant: run for run in grid.runs(seeds=[0], match="none")}
    for run in runs.values():
        assert unexplained(runs[run.declared.on or grid.base].config, run.config) == [], run.variant


@pytest.mark.parametrize(
    "changes",
    [
        {"model.stages.0.width": 4},
        {"model.stages.1.depth": 2, "recipe.drop_path": 0.2},
        {"model.norm": "batch", "model.layer_scale": 1e-4},
        {"model.downsample.kernel_size": 3, "model.downsample.small_kernel": None},
        {"model.squeeze_excite": True},
        {"model.stem_width": 4, "data.num_classes": 7},
        {"recipe.lr": 1e-4, "seed": 3},
        {f"{MIXER}.query_key.small_kernel": 1},
        {f"{MIXER}.query_key.norm": False},
        {"model.stages.3.token_mixer": {**ATTENTION, "query_key": {"name": "scaled_dot", "head_dim": 8}}},
        {"model.stages.*.channel_mixer.query_key.expansion": 3.0},
        {"model.stages.2.token_mixer": {"name": "pooling"}},
    ],
)
def test_every_declared_change_is_explained(changes):
    assert unexplained(BASE, override(BASE, changes)) == []


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """The file of an operation that is registered once, and a run with it at a kernel size."""
    path = tmp_path_factory.mktemp("user") / "tied.py"
    path.write_text(TIED)

    def run(kernel_size):
        operation = {"name": "tied", "kernel_size": kernel_size}
        return override(BASE, {"modules": [UserModule.of(str(path))], f"{MIXER}.query_key": operation})

    return str(path), run


def test_a_second_change_that_hides_behind_a_size_is_found(tied):
    _, run = tied
    assert unexplained(run(3), run(5)) == []
    found = unexplained(run(3), run(7))
    stages = len(BASE.model.stages)
    assert len(found) >= stages and "token_mixer.query_key.norm: Identity → BatchNorm2d" in found[0]


def test_a_change_elsewhere_is_found(monkeypatch):
    build = RunConfig.build

    def also_another_head(self, **changes):
        model = build(self, **changes)
        if self.model.stages[0].token_mixer.query_key.kernel_size == 5:
            model.norm = nn.GroupNorm(1, model.num_features, device="meta")
        return model

    monkeypatch.setattr(RunConfig, "build", also_another_head)
    from metamixer import structure as module

    module._built_of.cache_clear()
    (line,) = unexplained(BASE, override(BASE, {f"{MIXER}.query_key.kernel_size": 5}))
    assert line == "norm: BatchNorm2d → GroupNorm"
    module._built_of.cache_clear()


def test_the_plan_warns(tied, tmp_path, capsys):
    path, run = tied
    variants = {
        "k3": Variant(),
        "k7": Variant(changes={f"{MIXER}.query_key.kernel_size": 7}),
        "both": Variant(changes={f"{MIXER}.query_key.kernel_size": 5, "recipe.lr": 1e-3}),
    }
    grid = Grid(bases={"tiny": run(3)}, base="k3", variants=variants, modules=(path,))
    print_plan(make_plan(LoadedGrid("tied", "Why?", grid), tmp_path / "runs"))
    said = " ".join(capsys.readouterr().out.split())
    assert "note: k7: its network differs in more than the declared change" in said
    assert "note: both: it changes model and recipe at once" in said
