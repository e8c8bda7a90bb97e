"""Which implementation a unit runs, and where only its modules will do."""

import pytest
import timm
import torch
from helpers.units import step

import binaryvit  # noqa: F401 - registers the models
from binaryvit.models.layers import BinaryUnit, RPReLU
from binaryvit.models.ops.choice import step_of
from binaryvit.models.ops.synchronized import synchronize
from binaryvit.training.build import blocks_of


def test_modules_are_used_where_someone_could_tell() -> None:
    unit, x = BinaryUnit(8, 8, 1, 1), torch.randn(2, 3, 8)
    assert step(unit, x)
    assert not step(BinaryUnit(8, 8, 1, 32), x)
    assert not step(BinaryUnit(8, 8, 32, 1), x)
    assert not step(unit, x[:1, :1]), "a single token has no statistics: PyTorch's own error says so"
    with torch.no_grad():
        assert not step(unit, x)
    watched = BinaryUnit(8, 8, 1, 1)
    watched.act.register_full_backward_hook(lambda *_: None)
    assert not step(watched, x)
    cumulative = BinaryUnit(8, 8, 1, 1)
    cumulative.norm.batch_norm.momentum = None
    assert not step(cumulative, x)
    assert not step(unit.eval(), x)
    assert not step(synchronize(BinaryUnit(8, 8, 1, 1)), x)


def test_a_hook_on_all_modules_sees_those_of_a_unit() -> None:
    unit, x, seen = BinaryUnit(8, 8, 1, 1), torch.randn(2, 3, 8), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        unit(x)
    finally:
        handle.remove()
    assert unit.linear in seen and step(unit, x)


def test_every_unit_of_a_block_trains_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("binaryvit_micro_patch2_32")
    used = []

    def noted(unit, parameters, x):
        used.append((unit, chosen := step_of(unit, parameters, x)))
        return chosen

    monkeypatch.setattr("binaryvit.models.layers.unit.step_of", noted)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    units = [module for block in blocks_of(model) for module in block.modules() if isinstance(module, BinaryUnit)]
    assert len(used) == len(units) and all(chosen for _, chosen in used)


class Doubled(RPReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_a_part_that_was_replaced_computes_in_training_too() -> None:
    unit, x = BinaryUnit(8, 8, 1, 1), torch.randn(2, 3, 8)
    plain = unit(x)
    unit.act.__class__ = Doubled
    torch.testing.assert_close(unit(x), 2 * plain)
    unit.act = torch.nn.Tanh()
    unit(x).sum().backward()
    assert unit(x).abs().max() <= 1 and unit.linear.weight.grad.any()
    unit = BinaryUnit(8, 8, 1, 1)
    unit.norm.batch_norm = torch.nn.BatchNorm1d(8, affine=False)
    unit(x).sum().backward()
    assert unit.linear.weight.grad.any()
