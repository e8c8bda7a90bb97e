"""Batch norm over all processes, here of one; `training/test_processes.py` has two."""

import pytest
import torch
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group

from binaryvit.models.ops.synchronized import synchronize


@pytest.fixture
def process():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (30.0, 0.03), (300.0, 0.03)])
def test_it_is_batch_norm_also_where_the_mean_is_large(mean, deviation, process):
    x = mean + deviation * torch.randn(4096, 3)
    gradient = torch.randn(4096, 3)
    found, exact = [], nn.BatchNorm1d(3).double()
    for norm, dtype in ((exact, torch.float64), (synchronize(nn.Sequential(nn.BatchNorm1d(3)))[0], torch.float32)):
        values = x.to(dtype).requires_grad_()
        output = norm(values)
        output.backward(gradient.to(dtype))
        found.append((output.double(), deviation * values.grad.double(), norm.running_var.double()))
    for expected, own in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=2e-3, atol=2e-3)
