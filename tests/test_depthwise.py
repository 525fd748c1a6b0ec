"""Depthwise convolutions that train in parts: the same function and gradients, and untouched outside training."""

import copy

import pytest
import torch
from small import RUN
from torch import nn

from metamixer.training.depthwise import SplitDepthwise, split_depthwise
from metamixer.training.learner import Learner


@pytest.mark.parametrize("size, kernel, stride, bias", [(4, 7, 2, False), (5, 3, 1, True), (8, 7, 2, True)])
def test_parts_give_the_same_scores_and_gradients(size, kernel, stride, bias):
    whole = nn.Conv2d(6, 18, kernel, stride, kernel // 2, groups=6, bias=bias, dtype=torch.float64)
    parts = copy.deepcopy(whole)
    split_depthwise(parts)
    assert type(parts) is SplitDepthwise and list(parts.state_dict()) == list(whole.state_dict())
    found = []
    for module in (whole, parts):
        x = torch.randn(3, 6, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        x = x.to(memory_format=torch.channels_last).requires_grad_()
        y = module(x)
        y.square().sum().backward()
        found.append([y, x.grad, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    x = torch.randn(2, 6, size, size, dtype=torch.float64)
    assert torch.equal(parts.eval()(x), whole.eval()(x))


def test_a_run_trains_its_downsampling_in_parts_and_evaluates_it_whole():
    learner = Learner(RUN, torch.device("cpu"), 1)
    split = [name for name, module in learner.model.named_modules() if isinstance(module, SplitDepthwise)]
    several = [
        name for name, m in RUN.build().named_modules() if isinstance(m, nn.Conv2d) and 1 < m.groups < m.out_channels
    ]
    assert split == several != []
    x = torch.rand(2, 1, 12, 12)
    built = RUN.build().to(memory_format=torch.channels_last)
    built.load_state_dict(learner.model.state_dict())
    with torch.no_grad():
        assert torch.equal(learner.model.eval()(x), built.eval()(x))
