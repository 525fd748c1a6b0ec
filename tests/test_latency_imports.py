"""What a phone measured, from a table: kept whole, refused by row."""

from dataclasses import asdict

import pytest
from small import RUN
from test_commands import launch

from analysis.folders import read_run
from analysis.latency import load
from analysis.latency_table import correlations
from metamixer.config import override
from metamixer.cost import count
from metamixer.latency import imports
from metamixer.latency.measure import COSTS, Subject
from metamixer.latency.rows import append
from metamixer.metric import Metric
from metamixer.networks import find_network, of_run
from metamixer.plugins import load_module
from metamixer.training.folder import RunFolder

CSV = """model,resolution,device,OS,runtime,compute units,median (ms),batch
ffnet_1,256,iPhone 15,iOS 17.4,Core ML,CPU+NE,1.5,
ffnet_1,256,iPhone 15,iOS 17.4,Core ML,CPU,9,1
"""


def test_a_table_from_a_phone(tmp_path):
    (tmp_path / "phone.csv").write_text(CSV)
    append(tmp_path, imports.read_csv(tmp_path / "phone.csv"))
    found = load(tmp_path)
    assert list(found["median_ms"]) == [1.5, 9.0] and list(found["compute_units"]) == ["CPU+NE", "CPU"]
    assert set(found["source"]) == {"phone.csv"} and list(found["batch"]) == [1, 1]


def test_a_table_may_say_what_its_networks_cost(tmp_path):
    (tmp_path / "phone.csv").write_text(CSV.replace(",batch", ",macs").replace("1.5,", "1.5,12345678901234"))
    append(tmp_path, imports.read_csv(tmp_path / "phone.csv"))
    found = load(tmp_path)
    assert found["macs"].tolist() == [12345678901234, 1] and found["parameters"].isna().all()


def test_any_runtime_and_compute_unit(tmp_path):
    text = CSV.replace("iOS 17.4,Core ML,CPU,", "Android 15,LiteRT,GPU,").replace(
        "iPhone 15,Android", "Pixel 9,Android"
    )
    (tmp_path / "phone.csv").write_text(text)
    rows = imports.read_csv(tmp_path / "phone.csv")
    assert [(row.runtime, row.compute_units) for row in rows] == [("Core ML", "CPU+NE"), ("LiteRT", "GPU")]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("median (ms)", "median (s)", r"row 1: column 'median \(s\)' is unknown; .*median \(ms\)"),
        (",runtime", "", "row 1: the columns are .*runtime"),  # it may be any: a phone is no proof of Core ML
        ("Core ML,CPU+NE", ",CPU+NE", "row 2.runtime: .* at least 1 character"),
        ("CPU,9,", "CPU,9 ms,", "row 3.median_ms: input should be a valid number"),
        ("CPU,9,", "CPU,nan,", "row 3.median_ms: input should be a finite number"),
        ("CPU,9,", "CPU,-1,", "row 3.median_ms: input should be greater than 0"),
        ("1.5,", "1.5", "row 2: 7 cells under 8 headings"),
        ("256,iPhone 15,iOS 17.4,Core ML,CPU,", "25.6,iPhone 15,iOS 17.4,Core ML,CPU,", "row 3.resolution: .*'25.6'"),
        ("256,iPhone 15,iOS 17.4,Core ML,CPU,", "256,,iOS 17.4,Core ML,CPU,", "row 3.device: .* at least 1 character"),
        ("ffnet_1,256,", f"ffnet_1,{10**20},", "row 2.resolution: .*10+"),
        ("batch\n", "macs\n", "row 3.macs: .*'3e9'"),
        (CSV.partition("\n")[2], "", "no rows below the headings"),
        (CSV, "", "row 1: the columns are"),
    ],
)
def test_a_table_is_refused_by_row(tmp_path, old, new, message):
    assert old in CSV
    text = CSV.replace(old, new, 1)
    (tmp_path / "phone.csv").write_text(text.replace("CPU,9,1", "CPU,9,3e9") if "macs" in new else text)
    with pytest.raises(ValueError, match=f"phone.csv: {message}") as error:
        imports.read_csv(tmp_path / "phone.csv")
    assert "\n" not in str(error.value)


def test_costs_can_be_held_against_a_phones_latencies(tmp_path):
    """Of a model of timm, of a run by its hash, of what the table says itself; a typo is said and kept."""
    key = "0123456789abcdef"
    RunFolder(tmp_path / key).create(RUN)
    lines = ["model,resolution,device,os,runtime,compute units,median (ms),parameters,macs,activations,moved"]
    lines += [f"{name},phone,its os,LiteRT,all,{costs}" for name, costs in (
        ("ffnet_1,64", "3,,,,"), ("ffnet_1,96", "4,,,,"), (f"{key},12", "1,,,,"), ("mine,64", "2,70000,800000,90,400"),
        ("ffnet1,64", "5,,,,"), ("ffnet1,64", "6,,,,"),
    )]  # fmt: skip
    (tmp_path / "phone.csv").write_text("\n".join(lines))
    shown = launch("import-latency", tmp_path / "phone.csv", "--runs", tmp_path).stdout
    (line,) = [line for line in shown.splitlines() if "without costs" in line]
    assert line.startswith("kept without costs: 'ffnet1': no ") and line.endswith("did you mean 'ffnet_1'?")
    rows = load(tmp_path)
    for name, network in {"ffnet_1": find_network("ffnet_1", 96), key: of_run(key, RUN)}.items():
        row = rows[rows["name"] == name].iloc[-1]
        counted = asdict(count(network.model, network.input_size))
        assert row[list(COSTS)].to_dict() == {cost: counted[cost] for cost in COSTS}
    assert rows.loc[rows["name"] == "mine", list(COSTS)].to_numpy().tolist() == [[70000, 800000, 90, 400]]
    assert rows.loc[rows["name"] == "ffnet1", list(COSTS)].isna().all(axis=None)
    found = correlations(rows).set_index("measure")
    assert set(found["n"]) == {4} and found.loc["multiply-adds", "spearman"] == pytest.approx(1)


def test_what_nothing_counts_keeps_its_row(tmp_path, monkeypatch):
    def nothing(*arguments, **options):
        raise ValueError("multiply-adds not counted for aten::odd")

    monkeypatch.setattr("metamixer.latency.measure.count", nothing)
    (tmp_path / "phone.csv").write_text(CSV)
    rows = imports.read_csv(tmp_path / "phone.csv")
    (line,) = imports.add_costs(rows, tmp_path)
    assert line == "kept without costs: 'ffnet_1': multiply-adds not counted for aten::odd" and len(rows) == 2


def test_an_edited_operation_of_the_users_own_makes_another_network(tmp_path):
    """In all three places that make keys: what is measured, what is imported for a run, and a grid's frame."""
    file, found = tmp_path / "my_op.py", {Subject(of_run("a", RUN)).key}
    for by, folder in (("2", "a"), ("4", "b")):
        file.write_text(
            "from metamixer import Activation, register\n@register\nclass Part(Activation):\n    name = 'part'\n"
            f"    def forward(self, scores):\n        return scores / {by}\n"
        )
        load_module(file)
        run = override(RUN, {"model.stages.*.token_mixer.activation": "part"})
        RunFolder(tmp_path / folder).create(run)
        measured = Subject(of_run("a", run)).key
        (tmp_path / "phone.csv").write_text(CSV.replace("ffnet_1,256", f"{folder},{RUN.data.image_size}"))
        rows = imports.read_csv(tmp_path / "phone.csv")
        assert not imports.add_costs(rows, tmp_path) and {row.network for row in rows} == {measured}
        assert read_run(str(tmp_path / folder), Metric("top1", "top-1"), with_config=True)["network"] == measured
        assert measured not in found
        found.add(measured)
