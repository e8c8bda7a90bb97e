"""What a binary unit computes, forward and backward, and the same unit as its modules."""

import copy

import torch

from binaryvit.models.layers import BinaryUnit
from binaryvit.models.ops.choice import Step, step_of


def randomized(module: torch.nn.Module, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """Parameters away from their initial values, where some terms would vanish."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.to(dtype)


def outcome(module: torch.nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = module(x)
    y.backward(gradient)
    named = {f"gradient of {name}": parameter.grad for name, parameter in module.named_parameters()}
    return {"output": y.detach(), "gradient of x": x.grad, **named, **dict(module.named_buffers())}


def assert_outcomes_match(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], within: float) -> None:
    """Each tensor up to `within`, relative and absolute, in the precision of what is expected."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_match(name, value.to(expected[name]), expected[name], rtol=within, atol=within)


def assert_match(name: str, found: torch.Tensor, expected: torch.Tensor, rtol: float, atol: float) -> None:
    """`torch.testing.assert_close`, whose message begins with the name of what is compared."""
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")


def unfused(unit: BinaryUnit) -> BinaryUnit:
    """The same unit computed by its modules, because a hook wants to see what they pass on."""
    unit = copy.deepcopy(unit)
    unit.linear.register_forward_hook(lambda *_: None)
    return unit


def step(unit: BinaryUnit, x: torch.Tensor) -> Step | None:
    """The step that the unit runs on x; None: its modules."""
    return step_of(unit, unit.parameters_in_order(), x)
