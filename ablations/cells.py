"""Which cells of query-key × activation × coefficient-value work at all?

Every combination of registered operations that fit each other, as the token mixer of the catalogue's network; a
first screening with one seed, to be followed by a grid of the best with more. Operations of your own take part with
`--module FILE`, where their parameters have defaults. The base is self-attention.

    python launch.py run cells      # 780 runs
"""

from itertools import product

from ablations.catalogue import GRID as CATALOGUE
from ablations.catalogue import MIXER
from metamixer.config import ConfigError
from metamixer.mixer import build_mixer, resolve_mixer
from metamixer.operation import KEYED_LAYOUTS, REGISTRY, SLOTS, Site, Slot
from sweeps import Grid, Variant

WIDTH = next(iter(CATALOGUE.bases.values())).model.stages[0].width


def sites() -> set[Site]:
    """Where a mixer has to fit: the first and the last stage on all data."""
    found = set()
    for base in CATALOGUE.bases.values():
        sizes = base.model.map_sizes(max(base.data.input_size[1:]))
        found |= {Site(base.model.stages[stage].width, sizes[stage], sizes[stage]) for stage in (0, -1)}
    return found


def slot(kind: Slot, name: str, keyed: bool = False) -> dict:
    """An operation with its defaults, as far as they fit a small network."""
    fields = REGISTRY[kind][name].Config.model_fields
    fitting = {"expansion": 1.0, "head_dim": WIDTH} if kind == "query_key" and name != "token_linear" else {}
    # scores of hundreds of keys are averaged, not added up
    fitting |= {"over_keys": True} if keyed else {}
    return {"name": name, **{key: value for key, value in fitting.items() if key in fields}}


def cells() -> dict[str, dict]:
    """Mixers by the names of their operations; those whose operations do not fit are left out."""
    found, places = {}, sites()
    for key, activation, value in product(*(REGISTRY[kind] for kind in SLOTS[1:])):
        keyed = REGISTRY["query_key"][key].makes in KEYED_LAYOUTS  # type: ignore[attr-defined]
        mixer = {
            "query": "linear",
            "query_key": slot("query_key", key),
            "activation": slot("activation", activation, keyed),
            "coefficient_value": slot("coefficient_value", value),
        }
        try:
            for site in places:
                build_mixer(resolve_mixer(mixer), site)
            found[f"{key}-{activation}-{value}"] = mixer
        except ValueError as error:
            if isinstance(error, ConfigError) and "missing parameter" in str(error):
                raise
    return found


GRID = Grid(
    bases=CATALOGUE.bases,
    base="scaled_dot-softmax-matmul",
    variants={name: Variant(changes={MIXER: mixer}) for name, mixer in cells().items()},
    seeds=(0,),
)
