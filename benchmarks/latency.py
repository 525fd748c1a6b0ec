"""FFNet and timm's mobile networks on every runtime of this machine: the tables of docs/latency.md.

    python benchmarks/latency.py                              # 12 networks, half an hour on 2 quiet cores
    python benchmarks/latency.py --tables                     # writes the tables again from the rows that are kept
    python benchmarks/latency.py --models ffnet_mini,starnet_s050 --resolution 64 --sessions 3 --out /tmp/page.md

Networks and runtimes are interleaved, one thread, fp32; the rows are kept in `--runs`, as `launch.py bench` keeps them.
Run it on a machine that does nothing else: what is noisy says so in the table.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from torch import nn

from analysis import tables
from analysis.frame import each
from analysis.latency import load
from analysis.latency_table import correlations, notes, pivot
from metamixer.latency.measure import Subject, time_networks
from metamixer.latency.rows import append
from metamixer.latency.runtimes import RUNTIMES, device, system
from metamixer.networks import Network, find_network

MODELS = (
    "ffnet_1,ffnet_2,ffnet_3,fastvit_t8,fastvit_sa12,repvit_m1,efficientformerv2_s0,mobilenetv4_conv_medium,"
    "starnet_s2,poolformerv2_s12,convnext_atto,caformer_s18"
)
KERNELS, CHANNELS, MAP = (3, 5, 7), 320, 16
BEGIN, END = "<!-- measured -->", "<!-- end -->"


def subjects(names: list[str], resolution: int) -> list[Subject]:
    """The networks, those that fold unfolded too."""
    networks = [find_network(name, resolution) for name in names]
    return [
        Subject(network, folded)
        for network in networks
        for folded in ([True, False] if _folds(network.model) else [True])
    ]


def _folds(model: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def depthwise() -> list[Subject]:
    """One depthwise convolution for each kernel size, at the width and map of FFNet-1's third stage."""
    return [
        Subject(
            Network(
                f"{k}×{k}", nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, k, padding=k // 2, groups=CHANNELS)),
                (CHANNELS, MAP, MAP),
            )
        )
        for k in KERNELS
    ]  # fmt: skip


def page(rows: pd.DataFrame) -> str:
    """The tables in Markdown."""
    networks = rows[rows["resolution"] != MAP]
    folded = networks[~networks["network"].str.endswith(" unfolded")]
    parts = [
        "## Measured latency",
        to_markdown(folded),
        "## Which cost ranks latency",
        "Spearman's correlation over the networks above, with its 95 % interval (none for a correlation of 1).",
        markdown(*correlation_table(folded)),
        "## Folded against unfolded",
        "Unfolded latency as a multiple of folded; in brackets what the spreads of both allow.",
        markdown(*_folding(networks)),
        f"## Depthwise convolutions, {CHANNELS} channels on a map of {MAP}×{MAP}",
        to_markdown(rows[rows["resolution"] == MAP]),
        "## FFNet-1 on its best runtime",
        _best(folded),
    ]
    return "\n\n".join(part.rstrip() for part in parts)


def to_markdown(rows: pd.DataFrame) -> str:
    """The same for documents."""
    return "\n".join([tables.markdown(pivot(rows)), "", *(f"{line}  " for line in notes(rows))]).rstrip() + "\n"


def markdown(heads: list[str], body: list[list[str]]) -> str:
    return tables.markdown(pd.DataFrame(body, columns=heads))


def correlation_table(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of `correlations`: one row per measure of cost, one column per runtime."""
    found = correlations(rows)
    runtimes = list(dict.fromkeys(found["runtime"]))
    body = []
    for measure in dict.fromkeys(found["measure"]):
        of_one = {row.runtime: row for row in each(found[found["measure"] == measure])}
        body.append([measure, *(_correlation(of_one[runtime]) for runtime in runtimes)])
    numbers = {row.runtime: row.n for row in each(found)}
    return ["cost", *(f"{runtime} (n = {numbers[runtime]})" for runtime in runtimes)], body


def _correlation(row: Any) -> str:
    if math.isnan(row.spearman):
        return "–"
    around = "" if math.isnan(row.low) else f" [{row.low:.2f}, {row.high:.2f}]"
    return f"{row.spearman:.2f}{around}"


def _folding(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    runtimes = list(dict.fromkeys(rows["runtime"]))
    table: dict[str, dict[str, str]] = {}
    for row in each(rows[rows["network"].str.endswith(" unfolded")]):
        same = (rows["network"] == row.network.removesuffix(" unfolded")) & (rows["runtime"] == row.runtime)
        for other in each(rows[same & (rows["resolution"] == row.resolution)]):
            low = (row.median_ms - row.spread_ms / 2) / (other.median_ms + other.spread_ms / 2)
            high = (row.median_ms + row.spread_ms / 2) / (other.median_ms - other.spread_ms / 2)
            cell = f"{row.median_ms / other.median_ms:.2f} [{low:.2f}, {high:.2f}]"
            table.setdefault(other.name, {})[row.runtime] = cell
    return ["network", *runtimes], [[name, *(cells.get(r, "–") for r in runtimes)] for name, cells in table.items()]


def _best(rows: pd.DataFrame) -> str:
    of_one = rows[(rows["network"] == "ffnet_1") & (rows["precision"] == "fp32")]
    if not {"eager"} < set(of_one["runtime"]):
        return "Not measured."
    best = of_one.loc[of_one["median_ms"].idxmin()]
    eager = float(of_one.loc[of_one["runtime"] == "eager", "median_ms"].iloc[0])
    return (
        f"{best['runtime']}: {best['median_ms']:.1f} ms, {best['median_ms'] / eager:.2f}× folded eager PyTorch in NCHW "
        f"({eager:.1f} ms); fp32, one thread."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS, help="timm models, separated by commas")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--runtimes", default="all", help="runtimes, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("docs/latency.md"))
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    text = arguments.out.read_text() if arguments.out.exists() else f"{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        sys.exit(f"{arguments.out}: no {BEGIN} and {END} to write between")
    names = arguments.models.split(",")
    if not arguments.tables:
        for some in (depthwise(), subjects(names, arguments.resolution)):
            report = time_networks(
                some, arguments.runtimes.split(","), rounds=arguments.rounds, sessions=arguments.sessions
            )
            append(arguments.runs, report.rows)
            for problem in report.refused:
                Console().print(problem, style="yellow", soft_wrap=True, highlight=False)
    rows = load(arguments.runs)
    here = (rows["device"] == device()) & (rows["os"] == system()) & (rows["threads"] == 1) & (rows["batch"] == 1)
    known = rows["network"].str.removesuffix(" unfolded").isin(names) & (rows["resolution"] == arguments.resolution)
    known |= rows["name"].isin([subject.name for subject in depthwise()]) & (rows["resolution"] == MAP)
    # after an upgrade the newest version's; other precisions are not timed here
    newest = rows[here & known].drop_duplicates(["network", "resolution", "runtime"], keep="last")
    order = {name: i for i, name in enumerate(RUNTIMES)}
    chosen = newest.sort_values("runtime", key=lambda column: column.map(order), kind="stable")
    arguments.out.write_text(f"{head}{BEGIN}\n{page(chosen)}\n{END}{tail}")


if __name__ == "__main__":
    main()
