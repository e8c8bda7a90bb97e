"""The C++ steps of a binary unit against its modules; how they are compiled, and what happens where they can't be."""

import copy
import logging
import os
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_fused import outcome, randomized, unfused

from binaryvit import fused
from binaryvit.layers import BinaryUnit
from binaryvit.native import build
from binaryvit.native import unit as native

needs_compiler = pytest.mark.skipif(not native.fits(torch.randn(2, 4)), reason="no C++ compiler was found")
WIDTHS = [(8, 32), (32, 8), (12, 12), (1, 3), (3, 1)]


def double_outcome(unit: BinaryUnit, x: torch.Tensor, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the modules give in float64, from the same float32 numbers."""
    return outcome(unfused(unit).double(), x.double(), gradient.double())


@needs_compiler
@pytest.mark.parametrize(("inside", "outside"), WIDTHS)
@pytest.mark.parametrize("tokens", [2, 63, 64, 65, 300])
def test_a_native_unit_is_its_modules(inside: int, outside: int, tokens: int) -> None:
    unit = randomized(BinaryUnit(inside, outside, 1, 1), torch.float32)
    x, gradient = torch.randn(1, tokens, inside), torch.randn(1, tokens, outside)
    expected = double_outcome(unit, x, gradient)
    assert native.fits(x)
    for name, value in outcome(unit, x, gradient).items():
        torch.testing.assert_close(value.to(expected[name]), expected[name], rtol=1e-4, atol=1e-4, msg=name)


@needs_compiler
def test_under_autocast_only_the_products_of_the_backward_pass_are_rounded() -> None:
    unit = randomized(BinaryUnit(64, 128, 1, 1), torch.float32)
    x, gradient = torch.randn(4, 50, 64), torch.randn(4, 50, 128)
    expected = outcome(unit, x, gradient)
    copied = copy.deepcopy(unit)
    inputs = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = copied(inputs)
    found.backward(gradient)
    assert torch.equal(found, expected["output"])
    for name, parameter in copied.named_parameters():
        close = dict(rtol=0, atol=0.02 * float(expected[f"gradient of {name}"].abs().max()))
        if name in ("norm.batch_norm.weight", "norm.batch_norm.bias", "act.slope"):
            close = dict(rtol=0, atol=0)
        torch.testing.assert_close(parameter.grad, expected[f"gradient of {name}"], **close, msg=name)
    scale = float(expected["gradient of x"].abs().max())
    torch.testing.assert_close(inputs.grad, expected["gradient of x"], rtol=0, atol=0.02 * scale)
    assert not torch.equal(inputs.grad, expected["gradient of x"])


@needs_compiler
@given(tokens=st.integers(2, 200), inputs=st.integers(1, 70), copies=st.integers(1, 4), seed=st.integers(0, 99))
def test_statistics_are_those_of_exact_integers(tokens: int, inputs: int, copies: int, seed: int) -> None:
    unit = BinaryUnit(inputs, inputs * copies, 1, 1)
    x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(seed))
    signs = torch.where(x >= 0, 1.0, -1.0).double()
    weight = unit.linear.weight.detach()
    centred = weight - weight.mean(1, keepdim=True)
    z = (signs @ torch.where(centred >= 0, 1.0, -1.0).double().t()) * weight.abs().mean(1).double()
    parameters = [unit.binarize.shift, unit.linear.weight, *unit.norm.batch_norm.parameters(), *unit.act.parameters()]
    _, mean, variance = native.binary_unit(x, *parameters, 1e-5)
    torch.testing.assert_close(mean.double(), z.mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(variance.double(), z.var(0, correction=0), rtol=1e-5, atol=1e-9)


@needs_compiler
def test_threads_change_no_bit() -> None:
    unit = randomized(BinaryUnit(16, 48, 1, 1), torch.float32)
    x, gradient = torch.randn(3, 333, 16), torch.randn(3, 333, 48)
    parameters = [unit.binarize.shift, unit.linear.weight, *unit.norm.batch_norm.parameters(), *unit.act.parameters()]
    before, sums = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            flat = x.flatten(0, 1)
            output, product, channels = native._unit(flat, *parameters, 1e-5, torch.float32)
            shift, weight, gamma, _, _, slope, _ = parameters
            *_, of_channels = native._unit_backward(
                gradient.flatten(0, 1), flat, shift, weight, gamma, slope, product, channels, 1e-5, torch.float32
            )
            sums.append([output, channels, of_channels])
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*sums, strict=True):
        assert torch.equal(one, three)


@needs_compiler
def test_not_a_number_stays_visible() -> None:
    unit = BinaryUnit(4, 8, 1, 1)
    x = torch.randn(2, 3, 4)
    x[0, 0, 0] = torch.nan
    assert unit(x)[0, 0].isnan().any()
    with torch.autocast("cpu", torch.bfloat16):
        y = unit(torch.randn(2, 3, 4, requires_grad=True))
    y.backward(torch.full_like(y, torch.nan))
    assert unit.linear.weight.grad.isnan().all()


@needs_compiler
def test_the_operations_keep_what_pytorch_asks_of_them() -> None:
    unit = randomized(BinaryUnit(8, 16, 1, 1), torch.float32)
    parameters = [unit.binarize.shift, unit.linear.weight, *unit.norm.batch_norm.parameters(), *unit.act.parameters()]
    x = torch.randn(20, 8, requires_grad=True)
    torch.library.opcheck(native._unit, (x, *parameters, 1e-5, torch.float32))


def test_what_does_not_fit_is_left_to_pytorch() -> None:
    assert not native.fits(torch.randn(2, 4, dtype=torch.float64))
    assert not native.fits(torch.empty(2, 5000))
    with torch.autocast("cpu", torch.float16):
        assert not native.fits(torch.randn(2, 4))


def test_without_a_compiler_training_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setattr(build, "load", build.lru_cache(build.load.__wrapped__))
    monkeypatch.setattr(native, "load", build.load)
    unit = randomized(BinaryUnit(8, 8, 1, 1), torch.float32)
    x, gradient = torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    with caplog.at_level(logging.WARNING):
        found = outcome(unit, x, gradient)
        outcome(unit, x, gradient)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no-such-compiler" in caplog.text
    expected = double_outcome(copy.deepcopy(unit), x, gradient)
    torch.testing.assert_close(found["output"].double(), expected["output"], rtol=1e-4, atol=1e-4)


def test_a_source_that_does_not_compile_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "wrong.cpp"
    source.write_text("int f( {\n")
    assert build.load(source) is None
    assert "wrong.cpp" in caplog.text
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@needs_compiler
def test_it_is_compiled_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    assert build.load.__wrapped__(source).one() == 1
    (library,) = (tmp_path / "binaryvit").iterdir()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert build.load.__wrapped__(source).one() == 1
    source.write_text('extern "C" int one() { return 2; }\n')
    assert build._key(source) not in library.name, "a changed source is compiled anew"
    assert os.stat(library).st_size > 0


@needs_compiler
def test_native_and_pytorch_steps_agree() -> None:
    unit = randomized(BinaryUnit(96, 24, 1, 1), torch.float32)
    parameters = [unit.binarize.shift, unit.linear.weight, *unit.norm.batch_norm.parameters(), *unit.act.parameters()]
    x = torch.randn(200, 96)
    for mine, theirs in zip(
        native.binary_unit(x, *parameters, 1e-5), fused.binary_unit(x, *parameters, 1e-5), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
