"""Bytes and seconds of the estimate against counting by hand; it claims nothing about a real GPU."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from training_setup import PYRAMID, student

from binaryvit import planning
from binaryvit.cli import main
from binaryvit.cost import cost
from binaryvit.errors import BinaryViTError
from binaryvit.planning import Accelerator, Assumptions, Work, plan_training, step_seconds
from binaryvit.study import load_study
from binaryvit.traffic import Traffic, _Counter, traffic

PAPER = Path(__file__).parent.parent / "results" / "paper"
SIZE = (3, 2, 2)  # of the images: 12 numbers


def test_bytes_of_a_linear_layer_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False))
    forward = traffic(model, SIZE, "fp32", training=False)
    assert forward == Traffic(4 * (12 + 5), 4 * 60, 4 * (12 + 5), 4 * 60, operations=1)
    assert (forward.bytes(3), forward.product_bytes(3)) == (4 * (3 * 17 + 60),) * 2
    # Half precision: images and weights are read in float32 and written in 16 bits, then the product.
    half = traffic(model, SIZE, "fp16", training=False)
    assert half == Traffic(6 * 12 + 2 * 17, 6 * 60 + 2 * 60, 2 * 17, 2 * 60, operations=3)
    # Backward: of an image, its input is read again for the weight's gradient; its output was read to be summed.
    training = traffic(model, SIZE, "fp32", training=True)
    assert training.product_per_image == 4 * (12 + 5 + 12) and training.per_image == 4 * (12 + 5 + 12 + 5)
    assert model[1].weight.grad is None


def test_bytes_grow_linearly_with_the_images():
    """So that a batch of any size follows from two small ones."""
    model = timm.create_model("binaryvit_micro_patch2_32", **PYRAMID["model_args"])
    counted = traffic(model, (3, 32, 32), "bf16", training=True)
    counter, images = _Counter(), torch.zeros(7, 3, 32, 32)
    with counter, torch.autocast("cpu", dtype=torch.bfloat16):
        model(images).sum().backward()
    assert counter.bytes == pytest.approx(counted.bytes(7), rel=1e-6)
    assert counter.product_bytes == pytest.approx(counted.product_bytes(7), rel=1e-6)
    assert counter.operations == counted.operations and 0 < counted.product_per_image < counted.per_image


def test_training_costs_three_forward_passes_as_pytorch_counts_them():
    config = student(variant="deit_micro_patch4_32", model_args={"depth": 2})
    work = planning.work_of(config, None)
    model = timm.create_model("deit_micro_patch4_32", depth=2, num_classes=1000)
    for block in model.blocks:
        block.attn.fused_attn = False  # whose CPU form PyTorch does not count
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 32, 32)).sum().backward()
    stem = cost(model).layers.loc["patch_embed.proj", "flops"]  # images have no gradient
    assert work.products == counter.get_total_flops() + 2 * stem
    teacher = timm.create_model("deit_micro_patch4_32", depth=1)
    taught = planning.work_of(config, teacher)
    assert taught.products - work.products == 2 * cost(teacher).flops
    assert taught.teacher.bytes(1) > 0 and taught.student == work.student and taught.norms == 0


GPU = Accelerator("a GPU", half=100.0, single=10.0, memory=40.0, link=8.0, network=4.0)
EXACT = Assumptions(
    product_efficiency=0.5, memory_efficiency=0.5, link_efficiency=0.5, kernel_seconds=0.001, sync_seconds=0.25,
    sync_seconds_network=0.5, gpus_per_machine=2, micro_batch=4, loader_images_per_second=0.5,
)  # fmt: skip
WORK = Work(
    products=100.0, elementwise=10.0, student=Traffic(50.0, 20.0, 20.0, 10.0, 7),
    teacher=Traffic(10.0, 20.0, 5.0, 5.0, 3), parameters=6, norms=3,
)  # fmt: skip


def test_seconds_of_a_step_by_hand():
    optimizer = 28 * 6 / 20
    # 4 images: arithmetic 4 * (100 / 50 + 10 / 10) = 12 s; bytes 40 + 4 * 60 = 280 at 20 a second; products' 15 + 100.
    assert step_seconds(WORK, 4, 1, "fp16", GPU, EXACT) == pytest.approx((12 + 14 + optimizer, 12 + optimizer, 0))
    # 8 images are two such passes.
    assert step_seconds(WORK, 8, 1, "fp16", GPU, EXACT) == pytest.approx((52 + optimizer, 24 + optimizer, 0))
    # float32 takes the other peak: 4 * (100 / 5 + 1).
    assert step_seconds(WORK, 4, 1, "fp32", GPU, EXACT)[1] == pytest.approx(84 + optimizer)
    # Two GPUs: each sends 2 * 1/2 * 24 bytes at 4 a second, and waits 2 * 3 times for the norms of each pass.
    together = 6 + 6 * 0.25
    expected = (26 + optimizer + together, 12 + optimizer + together, together)
    assert step_seconds(WORK, 4, 2, "fp16", GPU, EXACT) == pytest.approx(expected)
    # Four GPUs are two machines: 2 * 3/4 * 24 bytes at 2 a second.
    assert step_seconds(WORK, 4, 4, "fp16", GPU, EXACT)[2] == pytest.approx(18 + 6 * 0.5)
    # A product that moves more than it computes; an eager pass that starts kernels more slowly than they run.
    moving = replace(WORK, products=1.0, elementwise=0.0)
    assert step_seconds(moving, 4, 1, "fp16", GPU, EXACT)[1] == pytest.approx(115 / 20 + optimizer)
    slow = step_seconds(WORK, 4, 1, "fp16", GPU, replace(EXACT, kernel_seconds=10.0))[0]
    assert slow == pytest.approx(10 * 10 + optimizer)


def test_days_of_the_paper_study():
    study = load_study(PAPER)
    works = {run.id: WORK for run in study.runs}
    planned = plan_training(study, works, GPU, (1, 8), assumed=EXACT)
    assert list(planned["run"]) == [run.id for run in study.runs for _ in range(2)]
    steps = 300 * (1_281_167 // 512)
    for row, (number, share) in zip(planned.itertuples(), [(1, 512), (8, 64)], strict=False):
        slow, fast, waiting = step_seconds(WORK, share, number, "fp16", GPU, EXACT)
        assert (row.gpus, row.images_per_gpu) == (number, share)
        assert row.days_slow == pytest.approx(steps * slow / 86400) and row.gpu_days_fast == number * row.days_fast
        assert row.images_per_second_fast == pytest.approx(512 / fast)
        assert row.communication_slow == pytest.approx(waiting / slow)
        assert row.loader_cores_fast == math.ceil(share / fast / 0.5)
    needed = planning.needed_throughput(study, works, days=10)
    assert set(needed["million_images"]) == {steps * 512 / 1e6}
    assert needed["images_per_second_needed"][0] == pytest.approx(steps * 512 / 864000)
    assert needed["megabytes_per_image_slow"][0] == pytest.approx((40 + 64 * 60) / 64 / 1e6)
    with pytest.raises(BinaryViTError, match=r"512 images.*cannot be split over 3 GPUs"):
        plan_training(study, works, GPU, (3,))


def test_the_command_shows_numbers_and_what_they_rest_on(tmp_path, capsys):
    (tmp_path / "study.yaml").write_text(
        "{name: tiny, title: Tiny, recipe: {epochs: 6, warmup_epochs: 0, processes: 2}, analysis: [],"
        " teacher: {variant: deit_micro_patch4_32}, variants: [binaryvit_micro_patch2_32]}"
    )
    assert main(["plan", str(tmp_path), "--gpu", "H100", "--gpus", "2", "--train-images", "5120"]) == 0
    shown = capsys.readouterr().out
    assert "never compared with a run on a GPU" in shown and "H100" in shown and "product_efficiency: 0.3" in shown
    assert shown.count("binaryvit_micro_patch2_32-seed0") == 2
    assert main(["plan", str(tmp_path), "--gpus", "5"]) == 2
    assert "cannot be split over 5 GPUs" in capsys.readouterr().err
    assert main(["plan", str(tmp_path), "--days", "0"]) == 2
