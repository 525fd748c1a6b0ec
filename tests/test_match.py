"""Iso-cost: matched variants cost what the base costs and differ in nothing but widths; the grid of open cells."""

import runpy
import textwrap

import pytest
import torch
from small import RUN as TINY
from torch.utils.flop_counter import FlopCounterMode

from metamixer import ConfigError, differences, override
from metamixer.dense.segmentation import ffnet_seg
from metamixer.mixer import build_mixer, resolve_mixer
from metamixer.operation import REGISTRY, Coefficients, Layout, OperationConfig, QueryKey, Site, register
from metamixer.presets import preset
from metamixer.recipes import named_run
from sweeps import Grid, Variant, load_grid, make_plan
from sweeps.grid import LoadedGrid
from sweeps.iso_cost import matched

MIXER = "model.stages.*.token_mixer"
ATTENTION = preset("attention", query_key={"name": "scaled_dot", "head_dim": 8})
RUN = override(
    TINY,
    {"model.stem_stride": 2} | {f"model.stages.{i}.width": width for i, width in enumerate((16, 16, 32, 32))},
)
NAMES = ("mambaout", "van", "starnet", "hydra_attention", "identity", "attention")


def variant(name: str):
    return override(RUN, {MIXER: ATTENTION if name == "attention" else preset(name)})


def multiply_adds(config) -> int:
    """By torch's own counter, folding undone: norms are free in both, and there are no branches to fold."""
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        config.build().eval()(torch.zeros(1, *config.data.input_size))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", NAMES)
def test_multiply_adds_are_those_of_the_base(name):
    found = matched(variant(name), RUN, "macs")
    # Hydra's elementwise products are no products to torch's counter: a few per mille
    assert multiply_adds(found) == pytest.approx(multiply_adds(RUN), rel=0.025)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_base(name):
    base = override(RUN, {f"{MIXER}.query_key.norm": False, f"{MIXER}.coefficient_value.norm": False})
    found = matched(variant(name), base, "params")

    def parameters(config):  # each BatchNorm that folds into a convolution leaves one number a channel
        norms = (m for m in config.build().modules() if isinstance(m, torch.nn.BatchNorm2d))
        return sum(p.numel() for p in config.build().parameters()) - sum(m.num_features for m in norms)

    assert parameters(found) == pytest.approx(parameters(base), rel=0.025)


@pytest.mark.parametrize("name, variant", [("garments", "no_mixing"), ("photographs", "no_mixing")])
def test_networks_of_the_other_tasks_are_matched_too(name, variant):
    grid = load_grid(name).grid
    assert grid.match == "macs"
    base, found = (grid.runs(seeds=[0], only=[each])[0].config for each in (grid.base, variant))
    plain = grid.runs(seeds=[0], only=[variant], match="none")[0]
    assert abs(multiply_adds(plain.config) / multiply_adds(base) - 1) > 0.2
    assert multiply_adds(found) == pytest.approx(multiply_adds(base), rel=0.025)


def test_a_decoders_blocks_and_a_forecasters_channels_grow_along():
    values = ffnet_seg().to_dict()
    for width, stage in zip((12, 24, 48, 96), values["backbone"]["stages"], strict=True):
        stage |= {"width": width, "depth": 1}
    values["decoder"]["blocks"] |= {"width": 32, "depth": 1}
    base = override(named_run("garments"), {"model": values})
    narrow = {"model.backbone.stages.*.channel_mixer.query_key.expansion": 1.0}
    after = matched(override(base, narrow), base, "macs").model
    width = after.backbone.stages[0].width
    assert width > 12 and after.decoder.blocks.width == 32 * width // 12
    series = load_grid("series").grid
    base, attention = (series.runs(seeds=[0], only=[each])[0].config for each in (series.base, "attention"))
    after = matched(attention, base, "macs").model
    assert after.blocks.width == 7 * after.dim < 7 * 16 and after.blocks.token_mixer.query_key.head_dim == after.dim
    with pytest.raises(ConfigError, match="this network has none"):
        matched(series.runs(seeds=[0], only=["dlinear"])[0].config, base, "macs")


def test_nothing_but_widths_changes_and_heads_stay_as_many():
    before = variant("attention")
    after = matched(before, RUN, "macs")
    changed = {key.split(".")[-1] for key in differences(before, after)}
    assert changed <= {"width", "head_dim", "expansion"} and "width" in changed
    widths = [stage.width for stage in after.model.stages]
    assert [w // widths[0] for w in widths] == [1, 1, 2, 2] and widths[0] != 16
    for old, new in zip(before.model.stages, after.model.stages, strict=True):
        assert old.width // old.token_mixer.query_key.head_dim == new.width // new.token_mixer.query_key.head_dim


def test_a_users_operation_says_which_of_its_parameters_are_channels():
    """Groups of four channels stay as many; a parameter of the same value that counts something else stays."""

    @register
    class Grouped(QueryKey):
        name = "grouped_for_match"
        makes = Layout.MAP
        channel_counts = ("group_width",)

        class Config(OperationConfig):
            group_width: int = 4
            kernel_size: int = 4

        def __init__(self, config, site, query_dim):
            super().__init__(config, site, query_dim)
            self.coefficients = Coefficients(Layout.MAP, query_dim)
            groups = query_dim // config.group_width
            self.conv = torch.nn.Conv2d(query_dim, query_dim, 1, groups=groups)

        def forward(self, q, x):
            return self.conv(q)

    try:
        slots = {"query": "identity", "query_key": "grouped_for_match", "activation": "relu"}
        before = override(RUN, {MIXER: {**slots, "coefficient_value": "hadamard"}})
        wide = override(RUN, {f"model.stages.{i}.width": width for i, width in enumerate((32, 32, 64, 64))})
        after = matched(before, wide, "macs")
        for old, new in zip(before.model.stages, after.model.stages, strict=True):
            assert new.width > old.width
            key = new.token_mixer.query_key
            assert new.width // key.group_width == old.width // 4 and key.kernel_size == 4
    finally:
        del REGISTRY["query_key"]["grouped_for_match"]


def test_a_run_that_costs_the_same_already_stays_the_same():
    assert matched(RUN, RUN, "macs") == RUN
    relu = override(RUN, {f"{MIXER}.activation": "relu"})
    assert matched(relu, RUN, "macs") == relu


def test_equal_starts_do_not_change_the_widths():
    """Of a network without numbers no branch can be measured: this once ended in a traceback."""
    base = named_run("recall")
    variant = override(base, {"model.stages.*.token_mixer": "pooling"})
    equal = {"recipe.branch_ratio": 0.5}
    found = matched(override(variant, equal), override(base, equal), "macs")
    assert found == override(matched(variant, base, "macs"), equal)


def test_a_match_that_cannot_be_had_says_how_near_it_came():
    # eight heads of a channel pair each leave steps of 8 channels, and nothing else to scale
    heads = preset("attention", query_key={"name": "scaled_dot", "head_dim": 2})
    coarse = override(
        RUN,
        {f"model.stages.{i}.width": 16 for i in range(4)} | {MIXER: heads, "model.stages.*.channel_mixer": "pooling"},
    )
    with pytest.raises(ConfigError, match=r"no width brings its macs within 2%.* the nearest is \d+ channels"):
        matched(coarse, RUN, "macs")


def test_a_network_too_narrow_to_be_scaled_is_refused():
    narrow = override(RUN, {"model.stages.*.width": 1, MIXER: "identity"})
    with pytest.raises(ConfigError, match="too few widths near 1 channels"):
        matched(narrow, RUN, "macs")


def test_matching_is_an_option_of_every_grid(tmp_path):
    variants = {"ffnified": Variant(), "mambaout": Variant(changes={MIXER: "mambaout"})}
    plain = Grid(bases={"tiny": RUN}, base="ffnified", variants=variants)
    always = Grid(bases={"tiny": RUN}, base="ffnified", variants=variants, match="macs")

    def width(grid, **options):
        runs = {run.variant: run.config for run in grid.runs(seeds=[0], **options)}
        assert runs["ffnified"] == RUN
        return runs["mambaout"].model.stages[0].width

    assert width(plain) == width(always, match="none") == 16
    assert width(plain, match="macs") == width(always) < 16
    labels = [
        make_plan(LoadedGrid("test", "Why?", grid), tmp_path, match=match).data
        for grid, match in ((plain, None), (plain, "macs"), (always, "macs"), (always, None), (always, "none"))
    ]
    assert labels == ["tiny", "tiny+match=macs", "tiny", "tiny", "tiny+match=none"]


def cells():
    return runpy.run_path("ablations/cells.py")["GRID"].variants


def test_the_grid_of_cells_holds_whatever_fits_and_all_of_it_works():
    found = cells()
    # each layout of coefficients meets its own values, with every activation but those that change the layout
    fitting = set(REGISTRY["activation"]) - {"double_norm", "differential"}
    values = {
        "scaled_dot": {"matmul", "agent_matmul", "part_matmul"},
        "cross_covariance": {"channel_matmul"},
        "neighbourhood": {"windowed_sum", "slide_sum", "relative_values"},
    }
    for key, fitted in values.items():
        names = {name for name in found if name.startswith(f"{key}-")}
        assert names == {f"{key}-{activation}-{value}" for activation in fitting for value in fitted}
    assert (
        "hadamard-gelu-linear" in found
        and "linear-softmax-linear" not in found
        and "memory-gelu-depthwise" not in found
    )
    for name, declared in found.items():
        x = torch.randn(2, 16, 4, 4, requires_grad=True)
        y = build_mixer(resolve_mixer(declared.changes[MIXER]), Site(16, 4, 4))(x)
        y.square().sum().backward()
        assert y.shape == x.shape and torch.isfinite(x.grad).all(), name


def test_an_operation_of_the_users_own_takes_part_in_the_cells(tmp_path):
    before = cells()
    (tmp_path / "my_op.py").write_text(
        textwrap.dedent("""
        from metamixer import Activation, register

        @register
        class Cube(Activation):
            name = "cube_for_cells"

            def forward(self, scores):
                return scores**3
        """)
    )
    try:
        added = load_grid("cells", [str(tmp_path / "my_op.py")]).grid.variants.keys() - before.keys()
    finally:
        del REGISTRY["activation"]["cube_for_cells"]
    assert "depthwise-cube_for_cells-depthwise" in added and all("-cube_for_cells-" in name for name in added)
