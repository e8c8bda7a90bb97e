"""The benchmark of inference: what it leaves out, its table, and what it stores. Nothing here asserts a time."""

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers.compilers import needs_compiler

from binaryvit import cli
from binaryvit.bench import inference, openvino
from binaryvit.bench.inference import CASES, available_cases, summarize_inference
from binaryvit.bench.products import layer_shapes, summarize_products
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import LADDER


@pytest.mark.parametrize(("missing", "left"), [([], 0), (["nncf"], 1), (["openvino", "nncf"], 3)])
def test_what_is_not_installed_is_left_out_and_said(missing: list[str], left: int, monkeypatch) -> None:
    monkeypatch.setattr(openvino, "missing_packages", lambda: missing)
    cases, sentence = available_cases()
    assert len(cases) == len(CASES) - left
    assert bool(sentence) == bool(left)
    assert all(name in sentence for name in missing)


def test_the_packed_model_is_always_measured() -> None:
    assert available_cases(["DeiT, eager bf16"]) == (["packed", "DeiT, eager bf16"], "")
    with pytest.raises(BinaryViTError, match="'DeiT' can't be measured"):
        available_cases(["DeiT"])


def test_ratios_are_taken_within_each_turn() -> None:
    rows = [("packed", 0, 1.0), ("rival", 0, 4.0), ("packed", 1, 2.0), ("rival", 1, 4.0), ("packed", 2, 1.0),
            ("rival", 2, 3.0)]  # fmt: skip
    measured = pd.DataFrame(rows, columns=["case", "repetition", "seconds"]).assign(batch_size=2, threads=1)
    for name in ("peak_memory_gb", "first_call_seconds", "first_call_again_seconds"):
        measured[name] = 1.0
    summary = summarize_inference(measured).set_index("case")
    assert summary.loc["rival", ["at least", "packed is faster by", "at most"]].tolist() == [2, 3, 4]
    assert summary.loc["rival", "ms/image"] == 2000


def test_layers_are_those_of_the_model() -> None:
    shapes = layer_shapes(LADDER["micro"][5])
    assert shapes["layers"].sum() == 5 * 6 + 4 + 2, "five blocks, four of them reduced, two merges"
    assert shapes["share"].sum() == pytest.approx(1)


def test_all_layers_of_a_model_take_as_long_as_each_of_them() -> None:
    """Two layers of 2 Gop at 1 Gop/s and one of 4 Gop at 2 Gop/s: 8 Gop in 6 s; the peak product is not among them."""
    rows = [(1, 1, 1, 2, 0.5, 1.0), (2, 1, 1, 1, 0.5, 2.0), (9, 9, 9, 0, 0.0, 9.0)]
    measured = pd.DataFrame(rows, columns=["rows", "inputs", "outputs", "layers", "share", "gop_per_second"])
    summary = summarize_products(measured.assign(kind="packed", threads=1))
    assert summary["packed"].tolist() == pytest.approx([1, 2, 9, 8 / 6])
    assert summary["layers"].tolist() == [2, 1, 0, 3]
    assert summary["rows"].isna().tolist() == [False, False, False, True]


@needs_compiler
@pytest.mark.slow
def test_the_command_measures_and_stores(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["bench", "infer", "--family", "micro", "--cases", "simulation, eager fp32", "--batch-sizes", "2"]
    arguments += ["--threads", "1", "--repetitions", "2", "--output", str(tmp_path)]
    assert cli.main(arguments) == 0
    models = pd.read_csv(tmp_path / "infer-micro-models-threads1.csv")
    assert models["case"].tolist() == ["packed", "simulation, eager fp32"]
    assert models["packed is faster by"].iloc[0] == 1
    assert (models[["ms/image", "first_call_seconds"]] > 0).all(axis=None)
    products = pd.read_csv(tmp_path / "infer-micro-products-threads1.csv")
    assert (products[["packed", "float32", "bfloat16", "int8"]] > 0).all(axis=None)
    scaling = pd.read_csv(tmp_path / "infer-micro-scaling-threads1.csv")
    assert set(scaling["what"]) == {"image size", "depth", "batch size"}
    assert json.loads((tmp_path / "infer-micro-models-threads1.json").read_text())["batch_size"] == 2
    assert "simulation, eager fp32" in capsys.readouterr().out


def test_without_its_cpp_the_packed_model_is_not_measured_as_if_it_had_it(monkeypatch):
    monkeypatch.setattr(inference, "instructions", lambda: "PyTorch")
    with pytest.raises(BinaryViTError, match="needs Linux and a compiler"):
        inference.measure_part("models", "micro", ["packed"], [1], 1, 1, 1)
