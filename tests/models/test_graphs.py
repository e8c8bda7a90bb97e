"""Compiled training is one graph per kind of block, without breaks; nothing is compiled again after the first epoch."""

import functools

import pytest
import timm
import torch
from torch._dynamo.utils import counters

import binaryvit  # noqa: F401 - registers the models
from binaryvit.models.ops import native
from binaryvit.training.build import compile_blocks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "implementation", "kinds"),
    [
        (
            "binaryvit_micro_patch2_32",
            {
                "embed_dims": (64, 128),
                "depths": (1, 1),
                "num_heads": (1, 2),
                "mlp_ratios": (2, 2),
                "reductions": (2, 1),
            },
            "modules",
            2,
        ),
        ("reactdeit_micro_patch4_32", {"depths": 2}, "native", 1),
        ("deit_micro_patch4_32", {}, "modules", 1),
        # Each block with a rate of its own, more of them than torch compiles by default.
        ("deit_micro_patch4_32", {"depth": 10, "embed_dim": 24, "drop_path_rate": 0.1}, "modules", 10),
    ],
)
def test_equal_blocks_are_one_whole_graph_and_stay_compiled(
    name, arguments, implementation, kinds, monkeypatch
) -> None:
    if implementation == "modules":  # as on a GPU
        monkeypatch.setattr(native, "fits", lambda *_: False)
    torch._dynamo.reset()
    counters.clear()
    model = timm.create_model(name, img_size=16, **arguments)
    # All but the machine code, which takes minutes.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, fullgraph=True, backend="aot_eager"))
    torch._dynamo.config.recompile_limit = 8  # torch's default, whatever was compiled before
    compile_blocks(model)
    images, compiled = torch.randn(4, 3, 16, 16), []
    for _epoch in range(2):
        for training in (True, True, False):
            model.train(training)
            with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
                logits = model(images)
            if training:
                logits.sum().backward()
        compiled.append(counters["stats"]["unique_graphs"])
    assert not counters["graph_break"]
    assert compiled == [2 * kinds] * 2, "for training and for evaluation"
    torch._dynamo.reset()
