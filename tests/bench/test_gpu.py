"""`make check-gpu`: its refusal, its page from made-up rows, and its order of work with small models on the CPU."""

import json
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from binaryvit.bench import gpu
from binaryvit.bench.cards import peak, training_operations
from binaryvit.bench.gpu import Check, page, with_share_of_peak
from binaryvit.bench.training import MODES, measure_training
from binaryvit.records.run_record import GitState

REFERENCE, BINARY = "deit_small_patch16_224", "binaryvit_small_patch4_224"
RATES = {"eager": (1000.0, 100.0), "compiled": (1600.0, 960.0)}


@pytest.fixture
def summary() -> pd.DataFrame:
    rows = [
        {"variant": variant, "mode": mode, "images/s": rate, "lowest": rate - 9, "highest": rate + 9}
        for number, variant in enumerate((REFERENCE, BINARY))
        for mode in MODES
        for rate in [RATES[mode.split()[0]][number]]
    ]
    return pd.DataFrame(rows).assign(peak_memory_gb=3.25)


def test_without_a_cuda_device_it_says_so(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "check-gpu: This machine has no CUDA device, so there is nothing to check.\n"
    assert not list(tmp_path.iterdir())


def test_the_peak_is_that_of_the_very_card() -> None:
    assert peak("NVIDIA H100 80GB HBM3", "bf16") == 989.5e12
    assert peak("NVIDIA H100 PCIe", "fp32") == 51e12
    assert peak("NVIDIA H200 NVL", "fp16") < peak("NVIDIA H200", "fp16")
    assert peak("NVIDIA A100-SXM4-80GB", "bf16") == peak("NVIDIA A100 80GB PCIe", "bf16") == 312e12
    assert peak("NVIDIA L40S", "bf16") != peak("NVIDIA L4", "bf16")
    assert peak("Tesla T4", "bf16") is None  # it has none
    assert peak("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16") is peak("NVIDIA L40", "fp16") is None


def test_operations_of_training_are_six_for_each_multiplication_of_the_forward_pass() -> None:
    assert training_operations("deit_small_patch16_224") == pytest.approx(6 * 4.6e9, rel=0.02)


def test_the_page_tells_what_was_run_and_measured(summary) -> None:
    card = "NVIDIA H100 80GB HBM3"
    checks = [Check("Tests", True, 40.4, "200 passed"), Check("Study", False, 99.0, "NOT DONE: a-seed0")]
    text = page(card, GitState(commit="0123abc", dirty=True), checks, with_share_of_peak(summary, card), 32)
    assert text.startswith(f"# {card}\n") and "at batch 32" in text
    assert "commit 0123abc with uncommitted changes, " in text
    assert "- Tests: passed in 40 s (200 passed)" in text
    assert "- Study: **failed** in 99 s (NOT DONE: a-seed0)" in text
    share = training_operations(BINARY) * 960 / 989.5e12
    assert f"| `{BINARY}` | compiled bf16 | 960 (951 to 969) | 3.25 | {share:.1%} |" in text
    assert "trains 0.60 times as fast" in text and "9.6 times as fast as eager" in text
    assert len([line for line in text.splitlines() if line.startswith("| `")]) == 12


def test_the_share_of_an_unknown_cards_peak_is_not_guessed(summary) -> None:
    text = page("A card", GitState(commit=None, dirty=None), [], with_share_of_peak(summary, "A card"), 32)
    assert text.count("| unknown card |") == 12


def test_a_measurement_that_has_no_time_left_is_reported_and_costs_nothing_else(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "measure_training", lambda *given, **more: measure_training(*given, **more | {"until": 0}))
    commands = {"Tests": [sys.executable, "-S", "-c", "print('3 passed')"], "Study": ["true"]}
    small = dict(batch_size=2, family="micro", modes=["eager fp32"], repetitions=1, commands=commands)
    assert not gpu.check("A small card", tmp_path, **small)
    (text,) = (path.read_text() for path in tmp_path.iterdir())
    assert "- Tests: passed" in text and "- Study: passed" in text and "| model |" not in text
    assert "- Training steps: **failed**" in text and "did not end in the time it had" in text


def test_a_command_that_heeds_no_interruption_is_killed(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "_GRACE_SECONDS", 0.1)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(99)"
    begun = time.monotonic()
    ended = gpu._run("Tests", [sys.executable, "-S", "-c", deaf], until=begun + 2)
    assert not ended.passed and time.monotonic() - begun < 60


@pytest.mark.slow
def test_the_whole_check_on_small_models(tmp_path: Path) -> None:
    commands = {
        "Tests": [sys.executable, "-S", "-c", "print('3 passed')"],
        "Study": [sys.executable, "-S", "-c", "print('NOT DONE'); raise SystemExit(1)"],
    }
    small = dict(batch_size=2, family="micro", modes=["eager fp32"], repetitions=2, commands=commands)
    assert not gpu.check("A small card", tmp_path, **small)
    text = (tmp_path / "gpu-micro-a-small-card.md").read_text()
    assert (
        "Tests: passed" in text and "Study: **failed**" in text and "`binaryvit_micro_patch2_32` | eager fp32" in text
    )
    summary = pd.read_csv(tmp_path / "gpu-micro-a-small-card.csv")
    assert summary["variant"].tolist() == ["deit_micro_patch4_32", "binaryvit_micro_patch2_32"]
    assert summary["ratio"].iloc[0] == 1 and (summary[["images/s", "peak_memory_gb", "matmul_share"]] > 0).all(
        axis=None
    )
    assert summary["matmul_share"].max() < 1 and summary["first_step_seconds"].isna().all()
    assert len(pd.read_csv(tmp_path / "gpu-micro-a-small-card.repetitions.csv")) == 4
    identity = json.loads((tmp_path / "gpu-micro-a-small-card.json").read_text())
    assert identity["processes"] == 1 and identity["hardware"]["cpu"]
