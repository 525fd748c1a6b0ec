"""Do the published runs of FFNet come out as published?

Every run of arXiv 2406.02021, on ImageNet, with 8 GPUs: FFNet-1 to 3 at 256 px, the same distilled from RegNetY-16GF,
and those fine-tuned at 384 px. FFNet-4's own recipe at 256 px was not published (`metamixer.recipes` says what stands
in for it); its fine-tuning starts from that run's weights, so it joins the grid once `runs/` has them.

The images are in `imagenet/` (a link is enough), or in the folder of --set data.root=PATH.

    python launch.py plan ffnet_recipe --profile imagenet
    python launch.py run ffnet_recipe --profile imagenet --cluster slurm --only ffnet_1

Expected top-1 (%): 81.3, 82.9 and 83.9 at 256 px; 82.1, 83.7 and 84.5 distilled; 84.5 and 85.3 at 384 px.
"""

from pathlib import Path

from metamixer import ConfigError
from metamixer.recipes import BASE, RECIPES, named_run
from sweeps import Grid, Variant


def GRID(runs: Path) -> Grid:
    """The grid as far as the runs that it starts from are there."""
    variants, left_out = {}, {}
    for name, recipe in RECIPES.items():
        if not name.startswith("ffnet_"):
            continue
        try:
            initial = named_run(name, runs=runs).initial
        except ConfigError as error:
            left_out[name] = str(error)
            continue
        variants[name] = Variant(changes={**recipe.changes, **({"initial": initial.to_dict()} if initial else {})})
    return Grid(bases={"imagenet": BASE}, base="ffnet_1", variants=variants, left_out=left_out, seeds=(BASE.seed,))
