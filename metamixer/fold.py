"""Folding: norms and parallel branches into single convolutions, for inference."""

from __future__ import annotations

import copy
from typing import Any

from timm.models import reparameterize_model
from torch import nn


def fold(model: nn.Module, inplace: bool = False) -> nn.Module:
    """`model` in eval mode with what `timm.models.reparameterize_model` folds; a copy unless `inplace`.

    What is folded already stays as it is: some of timm's modules (FastViT's) can be folded but once.
    """
    model = (model if inplace else copy.deepcopy(model)).eval()
    folded = [m for m in model.modules() if isinstance(getattr(m, "reparam_conv", None), nn.Module)]
    for module in folded:
        vars(module)["reparameterize"] = _nothing
    # in a container, for a model that folds as a whole
    result = reparameterize_model(nn.Sequential(model), inplace=True)[0]
    for module in folded:
        del vars(module)["reparameterize"]
    return result


def _nothing() -> Any:
    return None
