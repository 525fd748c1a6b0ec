"""The tables of docs/findings.md and the README's figures, against the shipped runs."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from analysis.frame import curves, load
from analysis.ladder import steps
from analysis.prediction import correlations, points
from analysis.profile import cells, profile
from analysis.results import open_runs
from analysis.statistics import compare
from analysis.tables import markdown
from metamixer import Site, build_mixer, resolve_mixer
from metamixer.cost import count
from metamixer.presets import BASELINES, PRESETS

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", *(f"docs/{page}.md" for page in ("findings", "probes", "profile", "tasks", "families", "mixers")))
README, FINDINGS, PROBES, PROFILE, TASKS, FAMILIES, MIXERS = [(ROOT / name).read_text() for name in PAGES]


@pytest.fixture(scope="module")
def runs():
    return open_runs(ROOT / "notebooks" / "results")


def table(heading, page=FINDINGS):
    """The rows below the row that begins with `heading`: by variant, the other cells."""
    lines = page[page.index(heading) :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return rows[0][1:], {name: cells for name, *cells in rows[2:]}


def numbers(text):
    return [float(number) for number in re.findall(r"[-+]?[\d.]+", text.replace("−", "-"))]


def compared(rows, found):
    """A table's scores, differences and verdicts against a comparison, in as many digits as it has."""
    assert set(found["variant"]) == set(rows)
    for row in found.itertuples():
        score, difference, verdict = rows[row.variant]
        off = 0.51 * 10 ** -len(score.split()[0].partition(".")[2])
        assert numbers(score) == pytest.approx([row.mean, row.sd], abs=off) and verdict == row.verdict
        if verdict != "base":
            assert numbers(difference) == pytest.approx([row.difference, row.low, row.high], abs=off)


def test_the_profile(runs):
    tasks, rows = table("| variant | recall")
    found, _ = profile(runs, "profile")
    assert set(found["variant"]) == set(rows) and set(found["task"]) == set(tasks)
    for row in found.itertuples():
        value, *verdict = rows[row.variant][tasks.index(row.task)].split()
        assert float(value) == pytest.approx(row.mean, abs=0.051), (row.variant, row.task)
        assert verdict == ([row.verdict] if row.verdict in ("better", "worse", "hint") else [])
    attention, ffnified = rows["attention"], rows["parallel_branch"]
    assert [round(float(cell.split()[0])) for cell in (attention[0], ffnified[0], ffnified[2], attention[2])] == [
        int(figure) for figure in re.findall(r"(\d+) %", README[README.index("## What it found") :])[:4]
    ]


def test_images_where_nothing_else_mixes(runs):
    _, rows = table("| variant | isotropic")
    loaded = load(runs, "isotropic_images")
    found = compare(*loaded)
    compared(rows, found)
    step = steps(*loaded).set_index("variant").loc["no_mixing_no_places"]
    said = re.search(r"worth (\S+) points \[(\S+), (\S+)\]", FINDINGS).groups()
    assert numbers(" ".join(said)) == pytest.approx([-step.difference, -step.high, -step.low], abs=0.0051)
    row = found.set_index("variant")
    scores, gain = [row.loc[name, "mean"] for name in ("no_mixing", "attention")], row.loc["ffnified_attention"]
    assert "({:.2f} and {:.2f} %)".format(*scores) in README and gain["verdict"] == "better"
    assert f"gains {gain['difference']:.2f} points" in README and f"worth {-step.difference:.2f}." in README


def test_what_probes_predict(runs):
    _, rows = table("| probe | a pyramid")
    outcomes = [f"catalogue@{data}" for data in ("fashion-mnist", "patches")]
    outcomes += ["isotropic_images@fashion-mnist", "catalogue_garments@garments"]
    found = correlations(points(runs, ["catalogue_profile"], outcomes)).set_index(["task", "outcome"])
    for probe, row_of in rows.items():
        for outcome, cell in zip(outcomes, row_of, strict=True):
            row = found.loc[(probe, outcome)]
            assert numbers(cell) == pytest.approx([row["spearman"], row["low"], row["high"]], abs=0.0051)
            said = {"above zero": "better", "below zero": "worse", "hint": "hint"}
            assert said.get(cell.split("]")[1].strip(), "inside noise") == row["verdict"]
    patches = found.xs("catalogue@patches", level="outcome")["spearman"]
    local = patches[["strips", "relation", "path", "match"]]
    assert f"of {local.min():.2f} to {local.max():.2f}" in README
    assert f"(−{-patches['recall']:.2f})" in README


def test_the_catalogue_on_patches(runs):
    """Its column in docs/mixers.md, and the figures of the text."""
    rows = table("| mixer | query", MIXERS)[1] | table("| baseline | multiply", MIXERS)[1]
    loaded = load(runs, "catalogue", "patches")
    found = compare(*loaded).set_index("variant")
    assert set(found.index) == set(rows) == set(PRESETS | BASELINES)
    for name, row in found.iterrows():
        verdict = row["verdict"] if row["verdict"] in ("better", "worse", "hint") else ""
        assert rows[name][-1] == f"{row['mean']:.2f} ± {row['sd']:.2f} {verdict}".strip()
    text = " ".join(MIXERS[MIXERS.index("**On patches**") : MIXERS.index("**In the pyramid**")].split())
    off = found["difference"].map("{:.2f}".format)
    better = found.index[found["verdict"] == "better"]
    assert set(better) == {"hornet", "convnext", "external_attention"} and all(off[name] in text for name in better)
    assert f"is {off['identity']} points above" in text and f"is {off['ffnified_attention']} above" in text
    order = found["mean"].sort_values().index
    shown = [f"{found.loc[name, 'mean']:.2f}" for name in ("attention", "identity", "ffnified_attention")]
    assert "{} %, no mixing {}, FFNified attention {}.".format(*shown) in README
    assert order[4] == "attention" and (order[-1], order[-16]) == ("hornet", "convnext")
    assert all(name in BASELINES or rows[name][1].startswith("S") for name in order[-16:])
    last = loaded[0][["hash", "variant"]].merge(curves(loaded[0])).query("epoch == epoch.max()")
    losses = last.groupby("variant")["train_loss"].mean()
    assert losses.sort_values().index[-5] == "attention"
    said = [losses[name] for name in ("attention", "identity", "ffnified_attention")]
    assert "is {:.2f}, that of no mixing {:.2f}, of FFNified attention {:.2f}.".format(*said) in text


@pytest.fixture(scope="module")
def catalogue():
    runs = open_runs(ROOT / "notebooks" / "results" / "catalogue_profile")
    return runs, *profile(runs, "catalogue_profile")


def state(folder):
    """What the token mixers of a run hold of the 36 cells."""
    stage = json.loads((Path(folder) / "config.json").read_text())["config"]["model"]["stages"][0]
    mixer = build_mixer(resolve_mixer(stage["token_mixer"]), Site(stage["width"], 6, 6))
    return stage["depth"] * count(mixer, (stage["width"], 6, 6)).state_size


def test_families_of_mixers(catalogue):
    """The table of docs/families.md as a whole, and the figures of its text."""
    runs, found, _ = catalogue
    found = found.set_index(["variant", "task"])
    folders = load(runs, "catalogue_profile", "recall")[0].groupby("variant")["folder"].first()
    states = folders.map(state)
    heads, families = table("| family |", FAMILIES)

    def span(values, form):
        low, high = (format(values.agg(how), form) for how in ("min", "max"))
        return low if low == high else f"{low}–{high}"

    for line in families.values():
        row = dict(zip(heads, line, strict=True))
        names = re.findall(r"`(\w+)`", row["mixers"])
        for task in heads[1:6]:
            scores = found.loc[[(name, task) for name in names]]
            solved = (scores["solved"] == scores["n"]).sum()
            bracket = f" ({'all' if solved == len(names) else solved})" if solved else ""
            assert row[task] == span(scores["mean"], ".0f") + bracket, (names, task)
        assert row["state"] == span(states[names], ","), names
    mixers = [name for mixers, *_ in families.values() for name in re.findall(r"`(\w+)`", mixers)]
    assert sorted(mixers) == sorted(PRESETS | BASELINES)
    told = ["linear_attention", "attention", "xca", "hydra_attention"]
    said = re.findall(r"(\S+)(?: numbers and recalls|\. So does|\.\n- \*\*Too| numbers\n +and gets 46)", FAMILIES)
    assert [int(number.replace(",", "")) for number in said] == states[told].tolist()
    assert states.max() == 10000 and states["non_causal_ssd"] == 8144


def test_the_profile_of_every_mixer(catalogue):
    """The table of docs/profile.md as a whole, and the figures of its text."""
    runs, found, metas = catalogue
    assert markdown(cells(found, metas).reset_index()) in PROFILE
    assert f"{len(list(runs.glob('*/result.json')))} runs" in PROFILE.replace(",", "")
    means = found.pivot(index="variant", columns="task", values="mean")
    recall, relation = means["recall"], means["relation"]
    dynamic = ["attention", "relu_attention", "sigmoid_attention", "linear_attention", "xca", "gated_attention", "rmt"]
    dynamic += ["differential_attention", "agent_attention", "shvit", "inline"]
    assert set(recall.index[recall > 98.5]) == set(dynamic)
    both = set(means.index[(recall > 98.5) & (relation > 94)])
    assert both == {"rmt", "agent_attention", "inline"}
    assert (found.groupby("variant")["solved"].min() < 3).all()  # none solves all probes with all seeds
    assert not found.loc[found["task"] == "majority", "verdict"].isin(["better", "worse", "hint"]).any()
    assert means["majority"].min() > 99.55
    shift = means["shift"]
    assert shift[["attention", "gated_attention", "rmt", "differential_attention"]].min() > 97.5
    assert shift[["relu_attention", "sigmoid_attention", "linear_attention"]].round().isin(range(14, 18)).all()
    local = relation[["rmt", "agent_attention", "inline", "mala", "rala", "polaformer"]]
    assert local.round().between(94, 97).all()
    small = ["rep_mixer", "ffnified_attention", "lsnet", "recursive_pyramid", "agent_attention", "mlla", "focalnet"]
    way = found.assign(level=found["level"].clip(0, 1)).groupby("variant")["level"].mean().sort_values()[::-1]
    assert list(way.index[:3]) == ["ffnified_attention", "rmt", "agent_attention"]
    assert (100 * way[:3]).round().tolist() == [76, 72, 71]
    path, strips = means["path"], means["strips"]
    assert path[["ffnified_attention", "starnet"]].round(1).tolist() == [93.7, 93.4]
    local = ["rmt", "agent_attention", "inline", "mlla", "mala", "rala", "polaformer"]
    assert path[local].round().between(53, 68).all()
    assert strips[["attention", "identity", "mlp_mixer", "random_mixing"]].round().tolist() == [85, 79, 71, 65]
    split, match = means["split_recall"], means["match"]
    assert split.drop("agent_attention").max() < 26.5 and 29 < split["agent_attention"] < 29.5
    assert match["starnet"] > 97 and match[["ffnified_attention", "attention", "rmt"]].round().tolist() == [88, 51, 51]
    assert match[["depthwise", "convnext", "convnext_ffn", "conv2former"]].round().between(77, 83).all()
    parity = means["parity"]
    assert parity[[*small, "convnext"]].min() > 99 and parity[["van", "conv2former", "moganet"]].max() < 51


def test_what_starts_decide(runs):
    text = " ".join(FINDINGS[FINDINGS.index("**What do starts decide?**") :].split("\n\n")[0].split())
    own = compare(*load(runs, "ffnification", "digits")).set_index("variant")
    loaded = load(open_runs(ROOT / "notebooks" / "equal_starts"), "ffnification")
    equal = compare(*loaded).set_index("variant")
    for table, name in ((own, "attention"), (own, "pointwise"), (equal, "pointwise"), (own, "gelu")):
        assert f"{table.loc[name, 'mean']:.2f} ± {table.loc[name, 'sd']:.2f}" in text
    for name in ("parallel_branch", "no_mixing"):
        row = own.loc[name, ["difference", "low", "high"]]
        assert "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row).replace("-", "−") in text
    assert set(own.index[own["verdict"] != "inside noise"]) == {"attention", "pointwise"}
    stuck = loaded[0][loaded[0]["top1"] < 15]  # of ten classes
    assert set(zip(stuck["variant"], stuck["seed"], strict=True)) == {("gelu", 0)} and len(stuck) == 3


def test_equal_starts_keep_the_order():
    own, _ = load(open_runs(ROOT / "notebooks" / "results" / "catalogue_profile"), "catalogue_profile", "recall")
    equal, _ = load(open_runs(ROOT / "notebooks" / "equal_starts"), "catalogue_profile")
    table = pd.DataFrame({"own": means_of(own[own["fixed"]]), "equal": means_of(equal)})
    said = re.search(r"correlation of the two is (0\.\d+)", PROBES)[1]
    assert len(table) == 49 and float(said) == round(stats.spearmanr(table["own"], table["equal"]).statistic, 2)
    for name in ("external_attention", "hydra_attention"):
        said = re.search(rf"`{name}` \(([\d.]+) → ([\d.]+) %\)", PROBES).groups()
        assert numbers(" ".join(said)) == pytest.approx(table.loc[name], abs=0.051)
    moved = (table["equal"] - table["own"]).abs().sort_values()
    assert set(moved.index[-2:]) == {"external_attention", "hydra_attention"} and moved.iloc[-3] < 2.95


def means_of(runs):
    return runs.groupby("variant")["accuracy"].mean()


def test_the_dials(runs):
    found, metas = profile(runs, "dials")
    row = found.set_index(["variant", "task"])
    said = re.search(r"gets (\d+) %\s+with 2 pairs and (\d+) % with 16", PROBES)
    levels = [level for at in (2, 16) for level in metas[f"recall_{at}"].metric.levels.values()]
    assert numbers(" ".join(said.groups())) == pytest.approx(levels, abs=0.51)
    said = re.search(r"get\s+(\d+), (\d+) and (\d+) % at distances 1 to 3", PROBES)
    small = [row.loc["kernel_3", f"shift_{far}"]["mean"] for far in (1, 2, 3)]
    assert numbers(" ".join(said.groups())) == pytest.approx(small, abs=0.51)
    said = re.search(r"kernels of 7×7 fall from (\d+) to (\d+) %", FINDINGS)
    large = [row.loc["kernel_7", f"recall_{pairs}"]["mean"] for pairs in (2, 16)]
    assert numbers(" ".join(said.groups())) == pytest.approx(large, abs=0.51)
    solved = found.assign(kind=found["kind"].fillna("")).groupby(["variant", "kind"])["solved"].agg(list)
    assert solved["attention", "recall"] == solved["linear_attention", "recall"] == [3] * 4  # all of 2 to 16 values
    assert solved["linear_attention", "shift"] == [0] * 4 and sum(solved["attention", "shift"]) in range(1, 12)


def test_the_ladder_on_fashion_mnist(runs):
    _, rows = table("| variant | params")
    found = compare(*load(runs, "ffnification", "fashion-mnist"))
    assert set(found["variant"]) == set(rows)
    for row in found.itertuples():
        params, macs, score, difference, verdict = rows[row.variant]
        assert numbers(params) == [round(row.parameters / 1e3)] and numbers(macs) == [round(row.macs / 1e6, 2)]
        assert numbers(score) == pytest.approx([row.mean, row.sd], abs=0.0051)
        assert verdict == row.verdict
        if verdict != "base":
            assert numbers(difference) == pytest.approx([row.difference, row.low, row.high], abs=0.0051)


@pytest.mark.parametrize(
    "grid, data, heading",
    [
        ("garments", "garments", "| variant | mIoU"),
        ("photographs", "photographs", "| variant | PSNR dB"),
        ("series", "beijing", "| variant | MSE"),
    ],
)
def test_the_tables_of_tasks(runs, grid, data, heading):
    _, rows = table(heading, TASKS)
    found = compare(*load(runs, grid, data))
    compared(rows, found)
