"""The benchmark of training: its cases, its table, and what it stores. Nothing here asserts a time."""

import json
from pathlib import Path

import pandas as pd
import pytest

from binaryvit import cli
from binaryvit.bench import training
from binaryvit.bench.training import MODES, Case, cases, summarize_training
from binaryvit.errors import BinaryViTError


def test_cases_begin_with_what_all_are_compared_with() -> None:
    chosen = cases("small")
    assert chosen[0] == Case("deit_small_patch16_224", "eager fp32")
    assert [case.mode for case in chosen[1:]] == [mode for mode in MODES if "fp16" not in mode] * 2
    assert cases("micro", ["deit_micro_patch4_32"], ["eager fp32"]) == [Case("deit_micro_patch4_32", "eager fp32")]


@pytest.mark.parametrize(("family", "modes"), [("large", []), ("micro", ["eager int4"])])
def test_an_unknown_case_is_named(family: str, modes: list[str]) -> None:
    with pytest.raises(BinaryViTError, match="choose from"):
        cases(family, modes=modes)


def test_an_unknown_variant_is_named() -> None:
    with pytest.raises(BinaryViTError, match="timm has no model 'binaryvit_smal_patch4_224'"):
        cases("small", ["binaryvit_smal_patch4_224"])


def test_ratios_are_taken_within_each_repetition() -> None:
    rows = [("a", "x", 0, 10.0), ("b", "x", 0, 5.0), ("a", "x", 1, 20.0), ("b", "x", 1, 10.0), ("b", "x", 2, 4.0),
            ("a", "x", 2, 16.0)]  # fmt: skip
    measured = pd.DataFrame(rows, columns=["variant", "mode", "repetition", "images_per_second"])
    for name in ("peak_memory_gb", "first_step_seconds", "first_step_again_seconds", "matmul_share"):
        measured[name] = 1.0
    summary = summarize_training(measured).set_index("variant")
    assert summary.loc["a", "ratio"] == 1
    assert summary.loc["b", ["lowest ratio", "ratio", "highest ratio"]].tolist() == [0.25, 0.5, 0.5]
    assert summary.loc["b", "images/s"] == 5


def test_the_command_hands_over_what_it_is_told_and_stores(tmp_path: Path, monkeypatch, capsys) -> None:
    told = []

    def measured(*arguments) -> pd.DataFrame:
        told.append(arguments)
        row = dict(variant="deit_micro_patch4_32", mode="eager fp32", batch_size=2, threads=1, processes=2)
        return pd.DataFrame([row | dict(repetition=0, seconds=0.5, images_per_second=8.0, peak_memory_gb=1.5)])

    monkeypatch.setattr(training, "measure_training", measured)
    command = "bench train --family micro --variants deit_micro_patch4_32 --batch-size 2 --repetitions 3 --threads 1"
    command += " --processes 2 --output"
    assert cli.main([*command.split(), str(tmp_path), "--modes", "eager fp32"]) == 0
    assert told == [([Case("deit_micro_patch4_32", "eager fp32")], 2, 3, 1, 2)]
    assert pd.read_csv(tmp_path / "train-micro.csv")["peak_memory_gb"].tolist() == [1.5]
    assert json.loads((tmp_path / "train-micro.json").read_text())["processes"] == 2
    assert "deit_micro_patch4_32" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes_train_together() -> None:
    case = Case("binaryvit_micro_patch2_32", "eager fp32")
    measured = training.measure_training([case], batch_size=3, repetitions=2, threads=1, processes=2)
    assert measured["images_per_second"].tolist() == (2 * 3 / measured["seconds"]).tolist()
    of_each = measured[["peak_memory_gb_0", "peak_memory_gb_1"]]
    assert (of_each > 0).all(axis=None) and (measured["peak_memory_gb"] == of_each.max(axis=1)).all()
    assert summarize_training(measured)["peak_memory_gb_1"].tolist() == of_each["peak_memory_gb_1"].tolist()[:1]


def test_processes_without_a_gpu_each_are_refused(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(BinaryViTError, match="2 processes need as many GPUs; there are 1"):
        training.measure_training([], processes=2)
