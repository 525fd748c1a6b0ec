"""Pytest plugin that points timm's own, unmodified test suite at this project's models.

pytest -p timm_suite_plugin timm-1.0.31/tests/test_models.py -k ffnet_mini
"""

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from metamixer import Backbone, isotropic, override
from metamixer.ffnet import CONFIGS

ISOTROPIC = {
    "input_size": (3, 32, 32),
    "fixed_input_size": True,
    "pool_size": (8, 8),
    "first_conv": "stem",
    "classifier": "head.fc",
}
# timm's suite wants three levels of features: three stages of one block, all of one size
BLOCK = isotropic(1, 32, "attention", patch=4, norm="layer")
THREE = override(BLOCK, {"stages": 3 * BLOCK.stages, "downsample": "none"})
default_cfgs = generate_default_cfgs({"isotropic_mini.untrained": ISOTROPIC})


@register_model
def isotropic_mini(pretrained=False, **kwargs):
    return build_model_with_cfg(
        Backbone,
        "isotropic_mini",
        pretrained,
        feature_cfg={"out_indices": kwargs.pop("out_indices", (0, 1, 2)), "flatten_sequential": True},
        config=THREE,
        **{"img_size": 32, **kwargs},
    )


_list_models = timm.list_models


def _list_ours(*args, **kwargs):
    kwargs.pop("module", None)
    kwargs.pop("pretrained", None)
    return [name for name in _list_models(*args, **kwargs) if name.split(".")[0] in (*CONFIGS, "isotropic_mini")]


timm.list_models = _list_ours
