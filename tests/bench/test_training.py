"""The benchmark of training: its cases, its table, and what it stores. Nothing here asserts a time."""

import json
from pathlib import Path

import pandas as pd
import pytest

from binaryvit import cli
from binaryvit.bench.training import MODES, Case, cases, summarize_training
from binaryvit.errors import BinaryViTError


def test_cases_begin_with_what_all_are_compared_with() -> None:
    chosen = cases("small")
    assert chosen[0] == Case("deit_small_patch16_224", "eager fp32")
    assert [case.mode for case in chosen[1:]] == [*MODES] * 2
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


@pytest.mark.slow
def test_the_command_measures_and_stores(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = [
        "bench",
        "train",
        "--family",
        "micro",
        "--variants",
        "binaryvit_micro_patch2_32",
        "--modes",
        "eager fp32",
    ]
    arguments += ["--batch-size", "2", "--repetitions", "2", "--threads", "1", "--output", str(tmp_path)]
    assert cli.main(arguments) == 0
    summary = pd.read_csv(tmp_path / "train-micro.csv")
    assert summary["variant"].tolist() == ["deit_micro_patch4_32", "binaryvit_micro_patch2_32"]
    assert summary["ratio"].iloc[0] == 1
    assert (summary[["images/s", "peak_memory_gb", "matmul_share"]] > 0).all(axis=None)
    assert summary["matmul_share"].max() < 1
    assert summary["first_step_seconds"].isna().all()
    repetitions = pd.read_csv(tmp_path / "train-micro.repetitions.csv")
    assert len(repetitions) == 4
    identity = json.loads((tmp_path / "train-micro.json").read_text())
    assert identity["threads"] == 1
    assert identity["hardware"]["cpu"]
    assert "binaryvit_micro_patch2_32" in capsys.readouterr().out
