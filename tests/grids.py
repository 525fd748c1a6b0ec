"""Grids of runs as the launcher leaves them, with results that tests choose."""

import hashlib
import json

# variant: (accuracy at each seed, multiply-adds); a text is a run that failed with it, None one not started
LADDER = {
    "attention": ([96.11, 96.39, 95.83], 4_020_000),
    "gelu": ([96.18, 96.37, 95.98], 4_020_000),
    "static_keys": ([95.28, 95.83, 95.00], 3_600_000),
    "static_values": ([95.56, 95.55, 95.55], 3_150_000),
    "depthwise": ([97.22, 97.51, 96.93], 2_890_000),
    "large_kernel": ([97.51, 97.22, 96.94], 3_070_000),
    "parallel_branch": ([97.22, 97.78, 96.67], 3_070_000),
    "identity": ([88.61, 89.17, 88.06], 2_100_000),
    "pooling": ([93.06, "loss is not finite", 92.50], 2_100_000),
}
METRIC = {"name": "top1", "label": "top-1", "unit": "%"}
DATA = {"channels": 1, "image_size": 12, "num_classes": 10}


def key(*parts):
    """The hash of a made-up run: of a variant and a seed, and what else tells it apart."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def write_grid(root, ladder=LADDER, grid="ffnification", data="digits", base="attention"):
    """A grid as the launcher leaves it: manifest, configs, metrics and results; its runs are `key(variant, seed)`."""
    runs = []
    for variant, (results, macs) in ladder.items():
        for seed, top1 in enumerate(results):
            name = key(variant, seed) if (grid, data) == ("ffnification", "digits") else key(variant, seed, grid, data)
            on = None if variant == base else base
            runs.append({"hash": name, "variant": variant, "seed": seed, "on": on, "changes": {}})
            if top1 is not None:
                write_run(root / name, top1, macs)
    manifest = {"schema": 2, "grid": grid, "data": data, "question": "Which slot buys accuracy?", "base": base}
    path = root / "grids" / f"{grid}@{data}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest | {"metric": METRIC, "runs": runs}))
    return path


def write_run(folder, top1, macs):
    folder.mkdir(parents=True)
    model = {"stages": [{"depth": 1, "token_mixer": {"name": "metamixer"}}, {"depth": 2}]}
    config = {"model": model, "data": DATA, "seed": 0}
    (folder / "config.json").write_text(json.dumps({"schema": 2, "config": config}))
    rows = [{"epoch": epoch, "step": 11 * epoch, "lr": 1e-3, "train_loss": 2 / epoch} for epoch in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if isinstance(top1, str):
        result = {"state": "failed", "epoch": 2, "error": top1}
    else:
        both = {"top1": top1, "top5": 99.9, "loss": 0.12, "images": 360}
        result = {"state": "done", "epochs": 3, "evaluated": "test", "weights": "ema", "metric": "top1", **both}
        result |= {"ema": both, "raw": both | {"top1": top1 - 1}, "parameters": 284_810}
        result |= {"macs": macs, "seconds": 30.5, "images_per_second": 900.0}
    (folder / "result.json").write_text(json.dumps(result))


def rewrite(path, **changes):
    """Change values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
