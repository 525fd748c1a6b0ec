"""Published results on ImageNet-1K, as rows of the shape that runs have: context for what is measured here.

`published.csv` holds FFNet's table (arXiv 2406.02021; parameters counted again, folded) and some timm models of its
size, trained on ImageNet-1K alone: accuracy and parameters from timm's `results/results-imagenet.csv`, multiply-adds at
the same resolution from its `results/benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv`, or counted by
`launch.py cost NAME --size N` where that has none (column `counted`). One run each, so no spread over seeds.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from .frame import COLUMNS, with_latency
from .latency import published as published_latencies

_TABLE = Path(__file__).parent / "published.csv"


def published() -> pd.DataFrame:
    """A row a published result: the columns of `frame.load`, and `family`, `distilled`, `source` and `counted`.

    `grid` is "published", `data` "imagenet", `variant` and `network` the model's timm name; there is no seed, hash or
    loss. `distilled` says whether a teacher was used, which makes a comparison with other rows unequal. Published
    latencies are joined by name and resolution.
    """
    table = pd.read_csv(_TABLE, float_precision="round_trip")
    table = table.assign(
        grid="published",
        data="imagenet",
        state="done",
        network=table["variant"].str.split(".").str[0],
        base=False,
        fixed=True,
        macs=table["macs"].round().astype("Int64"),
    )
    own = [name for name in table.columns if name not in COLUMNS]
    texts = [name for name, kind in COLUMNS.items() if kind == "str" and name not in table]
    table = table.assign(**dict.fromkeys(texts, "")).reindex(columns=[*COLUMNS, *own]).astype(COLUMNS)
    return with_latency(table, published_latencies())[0]
