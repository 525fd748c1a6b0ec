"""Pytest plugin that points timm's own, unmodified test suite at this project's models.

pytest -p timm_suite_plugin timm-1.0.31/tests/test_models.py -k ffnet_mini
"""

import timm

from metamixer.ffnet import CONFIGS

_list_models = timm.list_models


def _list_ours(*args, **kwargs):
    kwargs.pop("module", None)
    kwargs.pop("pretrained", None)
    return [name for name in _list_models(*args, **kwargs) if name.split(".")[0] in CONFIGS]


timm.list_models = _list_ours
