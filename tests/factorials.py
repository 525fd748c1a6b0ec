"""Runs of a factorial of slots whose effects are known, as the launcher leaves them."""

import json

import numpy as np
from grids import DATA, METRIC

KEYS = [{"name": "linear", "expansion": 1.0}, *({"name": "depthwise", "kernel_size": size} for size in (3, 7))]
ACTIVATIONS = [{"name": "identity"}, {"name": "relu"}, {"name": "gelu"}]
VALUES = [{"name": "linear"}, {"name": "depthwise", "kernel_size": 7}]
LEVELS = {
    "query_key": ["linear", "depthwise 3×3", "depthwise 7×7"],
    "activation": ["identity", "relu", "gelu"],
    "coefficient_value": ["linear", "depthwise"],
}


def means(key=(-1.0, 0.0, 1.0), activation=(-0.5, 0.0, 0.5), value=(-0.3, 0.3), corner=0.0):
    """Additive means of each cell around 90; `corner` is added to the first cell."""
    mean = 90 + np.array(key)[:, None, None] + np.array(activation)[:, None] + np.array(value)
    mean[0, 0, 0] += corner
    return mean


def write_factorial(root, y, grid="slot_interactions", data="digits"):
    """`y` (seeds, keys, activations, values): accuracies; NaN is a run that was not started."""
    runs = []
    for i, key in enumerate(KEYS):
        for j, activation in enumerate(ACTIVATIONS):
            for k, of in enumerate(VALUES):
                variant = f"{key['name']}{key.get('kernel_size', '')}-{activation['name']}-{of['name']}"
                for seed, top1 in enumerate(y[:, i, j, k]):
                    name = f"{data}{variant}{seed}"
                    runs.append({"hash": name, "variant": variant, "seed": seed, "on": None, "changes": {}})
                    if np.isnan(top1):
                        continue
                    mixer = {"query": {"name": "linear"}, "query_key": key, "activation": activation}
                    stages = [{"depth": 1, "width": 16, "token_mixer": mixer | {"coefficient_value": of}}]
                    folder = root / name
                    folder.mkdir(parents=True)
                    config = {"schema": 2, "config": {"model": {"stages": stages}, "data": DATA, "seed": seed}}
                    (folder / "config.json").write_text(json.dumps(config))
                    both = {"top1": top1, "top5": 99.0, "loss": 0.3, "images": 1000}
                    result = {"state": "done", "epochs": 2, "weights": "raw", **both, "raw": both}
                    result |= {"parameters": 300_000, "macs": 4_200_000, "seconds": 9.0}
                    (folder / "result.json").write_text(json.dumps(result))
    manifest = {"schema": 2, "grid": grid, "data": data, "question": "More than the sum?", "metric": METRIC}
    manifest |= {"base": "depthwise7-gelu-depthwise", "runs": runs}
    (root / "grids").mkdir(parents=True, exist_ok=True)
    (root / "grids" / f"{grid}@{data}.json").write_text(json.dumps(manifest))
    return root
