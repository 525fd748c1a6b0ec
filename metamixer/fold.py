"""Folding: norms and parallel branches into single convolutions, for inference."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from timm.layers import BatchNormAct2d
from timm.models import reparameterize_model
from torch import fx, nn

from .layers import fold_norm

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold(model: nn.Module, inplace: bool = False) -> nn.Module:
    """`model` in eval mode, folded; a copy unless `inplace`.

    First goes what `timm.models.reparameterize_model` folds, then each BatchNorm that directly follows a convolution.
    What is folded already stays as it is: some of timm's modules (FastViT's) can be folded but once.
    """
    model = (model if inplace else copy.deepcopy(model)).eval()
    folded = [m for m in model.modules() if isinstance(getattr(m, "reparam_conv", None), nn.Module)]
    for module in folded:
        vars(module)["reparameterize"] = _nothing
    # in a container, for a model that folds as a whole
    result = reparameterize_model(nn.Sequential(model), inplace=True)
    for module in folded:
        del vars(module)["reparameterize"]
    for module in list(result.modules()):
        if any(isinstance(child, NORMS) for child in module.modules()) and not isinstance(module, NORMS):
            _fold_pairs(module)
    return result[0]


def _nothing() -> Any:
    return None


class _Calls(fx.Tracer):
    """Traces what one module calls; the modules that it calls are looked into by themselves."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) is not nn.Sequential


def _fold_pairs(module: nn.Module) -> None:
    """Fold the pairs that follow each other in a module's own forward, if nothing else reads what is between them."""
    try:
        graph = _Calls().trace(module)
    except Exception:  # fx can't follow every code; a ModuleList has none
        return
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.find_nodes(op="call_module"):
        before = node.args[0]
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        conv, norm = (module.get_submodule(str(name)) for name in (before.target, node.target))
        if not isinstance(conv, CONVOLUTIONS) or type(norm) not in (*NORMS, BatchNormAct2d):
            continue
        if norm.running_mean is not None and len(before.users) == calls[before.target] == calls[node.target] == 1:
            after = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
            module.set_submodule(str(before.target), fold_norm(conv, norm))
            module.set_submodule(str(node.target), after)
