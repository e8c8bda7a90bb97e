"""The C++ steps of a binary unit against its modules; how they are compiled, and what happens where they can't be."""

import copy
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.compilers import has_compiler, needs_compiler
from helpers.units import assert_match, assert_outcomes_match, outcome, randomized, step, unfused
from hypothesis import given
from hypothesis import strategies as st

from binaryvit.models.layers import BinaryUnit
from binaryvit.models.ops import compiler, native, reference

WIDTHS = [(8, 32), (32, 8), (64, 16), (10, 5), (12, 12), (1, 3), (3, 1)]


def fits(unit: BinaryUnit, x: torch.Tensor) -> bool:
    return step(unit, x) is native.binary_unit


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
    assert fits(unit, x)
    assert_outcomes_match(outcome(unit, x, gradient), expected, within=1e-4)


@needs_compiler
def test_a_native_unit_is_its_modules_at_exact_zeros() -> None:
    """sign(0) is +1; PReLU at 0 takes the slope's side; the norm's bias and a scale of 0 make its output exactly 0."""
    unit = randomized(BinaryUnit(8, 16, 1, 1), torch.float32)
    with torch.no_grad():
        norm = unit.norm.batch_norm
        for parameter in (unit.binarize.shift, norm.bias, unit.act.shift_in, norm.weight[:8]):
            parameter.zero_()
    x, gradient = torch.randint(-1, 2, (1, 70, 8)).float(), torch.randn(1, 70, 16)
    expected = double_outcome(unit, x, gradient)
    assert fits(unit, x)
    assert_outcomes_match(outcome(unit, x, gradient), expected, within=1e-4)


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
        assert_match(name, parameter.grad, expected[f"gradient of {name}"], **close)
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
    parameters = unit.parameters_in_order()
    _, mean, variance = native.binary_unit(x, parameters, 1e-5)
    torch.testing.assert_close(mean.double(), z.mean(0), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(variance.double(), z.var(0, correction=0), rtol=1e-5, atol=1e-9)


@needs_compiler
def test_threads_change_no_bit() -> None:
    unit = randomized(BinaryUnit(48, 48, 1, 1), torch.float32)  # smaller ones are left to one thread
    x, gradient = torch.randn(3, 333, 48), torch.randn(3, 333, 48)
    parameters = unit.parameters_in_order()
    before, sums = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            flat = x.flatten(0, 1)
            output, product, channels = native._unit(flat, *parameters, 1e-5, torch.float32)
            shift, weight, gamma, _, _, slope, _ = parameters
            _, of_shift, _, of_channels = native._unit_backward(
                gradient.flatten(0, 1), flat, shift, weight, gamma, slope, product, channels, 1e-5, torch.float32
            )
            sums.append([output, channels, of_shift, of_channels])
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*sums, strict=True):
        assert torch.equal(one, three)


@needs_compiler
def test_a_channel_that_hardly_varies_keeps_its_digits() -> None:
    """Nearly all products are 4096, the largest there is: sums of squares reach the integers' limit, and the variance
    and its gradient are small differences of large numbers.
    """
    unit = BinaryUnit(4096, 1, 1, 1)
    with torch.no_grad():
        unit.linear.weight.copy_(torch.where(torch.arange(4096) % 2 == 0, 1.0, -0.9) * 0.01)
    x = torch.where(torch.arange(4096) % 2 == 0, 0.5, -0.5).repeat(1, 640, 1)
    x[0, ::64, :3] *= -1
    gradient = torch.randn(1, 640, 1)
    expected = double_outcome(unit, x, gradient)
    found = outcome(unit, x, gradient)
    for name in found.keys() - {"gradient of binarize.shift", "gradient of linear.weight"}:  # whose tokens cancel
        value, scale = found[name], float(expected[name].abs().max())
        assert_match(name, value.to(expected[name]), expected[name], rtol=0, atol=1e-3 * scale)


@needs_compiler
def test_not_a_number_stays_visible() -> None:
    unit = BinaryUnit(4, 8, 1, 1)
    x = torch.randn(2, 3, 4)
    x[0, 0, 0] = torch.nan
    x.requires_grad_()
    y = unit(x)
    assert y[0, 0].isnan().any()
    y[1].sum().backward()
    assert x.grad[0, 0, 0].isnan()
    with torch.autocast("cpu", torch.bfloat16):
        y = unit(torch.randn(2, 3, 4, requires_grad=True))
    y.backward(torch.full_like(y, torch.nan))
    assert unit.linear.weight.grad.isnan().all()


@needs_compiler
@given(
    st.lists(
        st.floats(width=32, allow_nan=True, allow_infinity=True) | st.sampled_from([1.00390625, 1.01171875, 3.3961e38]),
        min_size=1, max_size=40,
    )
)  # fmt: skip
def test_gradients_are_rounded_to_bfloat16_as_pytorch_rounds(values: list[float]) -> None:
    """With a slope of 0 and weights 1, 0, 0 the gradient of a product where z > 0 is the output's, rounded."""
    gradient = torch.tensor(values).unsqueeze(1)
    tokens = len(gradient)
    product, x, of_x = torch.zeros(tokens, 1, dtype=torch.int16), torch.ones(tokens, 1), torch.empty(tokens, 1)
    channels, weights = torch.zeros(5, 1), torch.tensor([[1.0], [0.0], [0.0]])
    rounded = torch.empty(tokens, 1, dtype=torch.bfloat16)
    function = compiler.load(native._SOURCE).product_gradient_bfloat16
    compiler.call(function, gradient, product, x, channels, torch.zeros(1), weights, rounded, of_x, tokens, 1, 1)
    torch.testing.assert_close(rounded, gradient.bfloat16(), rtol=0, atol=0, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("strided", [False, True])
def test_the_operations_keep_what_pytorch_asks_of_them(strided: bool) -> None:
    unit = randomized(BinaryUnit(8, 16, 1, 1), torch.float32)
    x = (torch.randn(8, 20).t() if strided else torch.randn(20, 8)).requires_grad_()
    torch.library.opcheck(native._unit, (x, *unit.parameters_in_order(), 1e-5, torch.float32))


@needs_compiler
@pytest.mark.slow
def test_compiled_code_takes_the_native_step_and_any_strides() -> None:
    unit = randomized(BinaryUnit(8, 16, 1, 1), torch.float32)
    expected = double_outcome(unit, x := torch.randn(1, 8, 20).transpose(1, 2), gradient := torch.randn(1, 20, 16))
    graphs = []

    def look(graph: torch.fx.GraphModule, _inputs: list) -> torch.fx.GraphModule:
        graphs.append(graph.code)
        return graph

    torch.compile(copy.deepcopy(unit), backend=look, fullgraph=True)(x)
    assert len(graphs) == 1 and "torch.ops.binaryvit.unit" in graphs[0]
    compiled = copy.deepcopy(unit)
    compiled.compile(fullgraph=True)
    assert_outcomes_match(outcome(compiled, x, gradient), expected, within=1e-4)


def test_what_does_not_fit_is_left_to_pytorch() -> None:
    unit, x = BinaryUnit(4, 4, 1, 1), torch.randn(2, 3, 4)
    assert fits(unit, x) == has_compiler
    assert fits(unit, x.bfloat16()) == has_compiler, "it is widened first"
    assert not fits(unit, x.double())
    assert not fits(BinaryUnit(5000, 5000, 1, 1), torch.empty(2, 3, 5000))
    with torch.autocast("cpu", torch.float16):
        assert not fits(unit, x)
    unit.act.slope = torch.nn.Parameter(torch.zeros(1).expand(4))
    assert not fits(unit, x)
    assert not fits(BinaryUnit(4, 4, 1, 1).bfloat16(), x)


@needs_compiler
def test_default_types_of_new_tensors_do_not_reach_the_passes() -> None:
    unit = randomized(BinaryUnit(8, 16, 1, 1), torch.float32)
    x, gradient = torch.randn(2, 30, 8), torch.randn(2, 30, 16)
    expected = outcome(copy.deepcopy(unit), x, gradient)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        found = outcome(unit, x, gradient)
    finally:
        torch.set_default_dtype(before)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture
def uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of nothing, and a process that has not loaded anything yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "load", compiler.lru_cache(compiler.load.__wrapped__))
    monkeypatch.setattr(native, "load", compiler.load)
    return tmp_path / "cache" / "binaryvit"


def test_without_a_compiler_training_goes_on_and_says_so_once(
    uncompiled: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", str(uncompiled / "no-such-compiler"))
    monkeypatch.setattr(sys, "platform", "linux")
    unit = randomized(BinaryUnit(8, 8, 1, 1), torch.float32)
    x, gradient = torch.randn(2, 9, 8), torch.randn(2, 9, 8)
    with caplog.at_level(logging.WARNING):
        found = outcome(unit, x, gradient)
        outcome(unit, x, gradient)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no-such-compiler" in caplog.text and "what CXX names" in caplog.text
    assert native.compiled_by() is None
    expected = double_outcome(copy.deepcopy(unit), x, gradient)
    torch.testing.assert_close(found["output"].double(), expected["output"], rtol=1e-4, atol=1e-4)


@needs_compiler
def test_a_source_that_does_not_compile_says_where(uncompiled: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = uncompiled.parent.parent / "wrong.cpp"
    source.write_text("\nint f( {\n")
    assert compiler.load(source) is None
    assert "wrong.cpp:2" in caplog.text
    assert list(uncompiled.iterdir()) == []


@pytest.fixture
def one(uncompiled: Path) -> Path:
    """A source that compiles in no time, of a function that gives 1."""
    source = uncompiled.parent.parent / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    return source


@needs_compiler
def test_it_is_compiled_once_for_all_processes(uncompiled: Path, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler.load(one).one() == 1
    assert len(list(uncompiled.iterdir())) == 1
    run, commands = subprocess.run, []
    monkeypatch.setattr(subprocess, "run", lambda command, **rest: commands.append(command) or run(command, **rest))
    compiler.load.cache_clear()
    assert compiler.load(one).one() == 1
    assert not any("-shared" in command for command in commands)
    one.write_text('extern "C" int one() { return 2; }\n')
    compiler.load.cache_clear()
    assert compiler.load(one).one() == 2, "a changed source is compiled again"
    assert any("-shared" in command for command in commands)


@needs_compiler
def test_a_library_that_cannot_be_loaded_is_made_again(uncompiled: Path, one: Path) -> None:
    compiler.load(one)
    (library,) = uncompiled.iterdir()
    library.unlink()  # not overwritten: this process has it in use
    library.write_bytes(b"no library")
    compiler.load.cache_clear()
    assert compiler.load(one).one() == 1
    (library,) = uncompiled.iterdir()
    assert len(library.read_bytes()) > 1000


@needs_compiler
def test_a_library_that_someone_else_may_have_put_there_is_not_loaded(uncompiled: Path, one: Path) -> None:
    compiler.load(one)
    (library,) = uncompiled.iterdir()
    library.unlink()
    library.write_bytes(b"someone's")
    uncompiled.chmod(0o777)
    compiler.load.cache_clear()
    assert compiler.load(one).one() == 1
    assert library.read_bytes() == b"someone's", "it was neither loaded nor replaced"


@needs_compiler
def test_a_compiler_that_says_nothing_of_its_version_is_called_by_its_command(tmp_path, monkeypatch) -> None:
    silent = tmp_path / "silent"
    silent.write_text('#!/bin/sh\n[ "$1" = --version ] || exec g++ "$@"\n')
    silent.chmod(0o755)
    monkeypatch.setenv("CXX", str(silent))
    assert native.compiled_by() == str(silent)


@needs_compiler
def test_a_cache_that_cannot_be_written_is_done_without(uncompiled: Path, one: Path) -> None:
    uncompiled.parent.write_text("a file where the folder should be")
    assert compiler.load(one).one() == 1
    assert uncompiled.parent.read_text() == "a file where the folder should be"


@needs_compiler
def test_native_and_pytorch_steps_agree() -> None:
    unit = randomized(BinaryUnit(96, 24, 1, 1), torch.float32)
    parameters = unit.parameters_in_order()
    x = torch.randn(200, 96)
    for mine, theirs in zip(
        native.binary_unit(x, parameters, 1e-5), reference.binary_unit(x, parameters, 1e-5), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
