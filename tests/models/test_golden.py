"""Parity with numbers of the authors' own code, in float64.

Every case in the folder that the environment variable BINARYVIT_GOLDEN names is checked, by default the compact copies
in tests/golden. A case is <case>.json, <case>.weights.safetensors (the authors' names) and
<case>.expected.safetensors; a compact copy leaves out some of the expected numbers, never all of a kind in KINDS.
"""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from helpers.places import TESTS
from safetensors.torch import load_file
from timm.utils import AttentionExtract

from binaryvit.models.authors_names import our_name
from binaryvit.models.external_checkpoint import load_checkpoint
from binaryvit.models.vision_transformer import BinaryVisionTransformer

RELATIVE = 1e-9
ABSOLUTE_BELOW = 1e-12  # for gradients that are analytically zero
KINDS = ("eval.logits", "train.logits", "train.loss", "train.grad_norm.")


FOLDER = Path(os.environ.get("BINARYVIT_GOLDEN", TESTS / "golden"))
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))


def test_there_are_cases():
    assert CASES, f"no golden case in {FOLDER}"


def build(config: dict) -> BinaryVisionTransformer:
    dims, hidden = config["embed_dims"], config["mlp_dims"]
    stages = isinstance(dims, list)
    ratios = tuple(h // d for h, d in zip(hidden, dims, strict=True)) if stages else hidden // dims
    return BinaryVisionTransformer(
        img_size=config["image_size"],
        patch_size=config["patch_size"],
        num_classes=config["num_classes"],
        global_pool=config["global_pool"],
        embed_dims=tuple(dims) if stages else dims,
        depths=config["depths"],
        num_heads=config["num_heads"],
        mlp_ratios=ratios,
        reductions=config["reduction_ratios"],
        pooling_branches=config["pooling_branches"],
        affine=config["affine"],
        merge="full_precision" if config["merge"] == "full_precision" else "binary",
        stem_norm=stages,
        weight_bits=config["weight_bits"],
        activation_bits=config["activation_bits"],
    ).double()


@pytest.fixture(scope="module", params=CASES)
def case(request):
    folder = FOLDER
    config = json.loads((folder / f"{request.param}.json").read_text())
    model = build(config)
    load_checkpoint(model, folder / f"{request.param}.weights.safetensors")
    return config, model, load_file(folder / f"{request.param}.expected.safetensors")


def assert_equal(actual: torch.Tensor, expected: torch.Tensor, what: str, absolute: float = 0.0) -> None:
    """Relative to the largest element, for single elements may cancel."""
    expected = expected.double()
    actual = actual.detach().double().cpu().reshape(expected.shape)
    error = (actual - expected).abs().max().item()
    bound = max(RELATIVE * expected.abs().max().item(), absolute)
    assert error <= bound, f"{what}: off by {error:.2e}, allowed {bound:.2e}"


def test_a_number_changed_in_its_ninth_digit_is_noticed():
    expected = torch.randn(3, 4, dtype=torch.float64)
    changed = expected.clone()
    changed.view(-1)[changed.abs().argmax()] *= 1 + 1e-8
    with pytest.raises(AssertionError, match="off by"):
        assert_equal(expected, changed, "logits")


def test_parameters_and_expected_numbers(case):
    config, model, expected = case
    assert sum(p.numel() for p in model.parameters()) == config["parameters"]
    for kind in KINDS:
        assert any(key.startswith(kind) for key in expected), f"the case holds no {kind}"


def test_evaluation(case, device):
    config, model, expected = case
    model, images = copy.deepcopy(model).to(device), expected["pixel_values"].double().to(device)
    blocks = [block for stage in model.stages for block in stage.blocks]
    inputs = []
    hooks = [block.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for block in blocks]
    hooks.append(blocks[-1].register_forward_hook(lambda _, __, output: inputs.append(output)))
    extract = AttentionExtract(model.eval(), method="hook")
    with torch.no_grad():
        attention = list(extract(images).values())
        for hook in hooks:
            hook.remove()
        logits = model(images)
    assert_equal(logits, expected["eval.logits"], "eval.logits")
    assert len(attention) == len(blocks)
    for i, x in enumerate(inputs):
        if f"eval.hidden_states.{i}.head" in expected:
            assert_equal(x[0, :4, :8], expected[f"eval.hidden_states.{i}.head"], f"hidden state {i}")
            assert_equal(x.abs().mean(), expected[f"eval.hidden_states.{i}.mean_abs"], f"mean of hidden state {i}")
    for i, p in enumerate(attention):
        if f"eval.attention.{i}.head" in expected:
            assert_equal(p[0, 0, :4, :16], expected[f"eval.attention.{i}.head"], f"attention {i}")
            # 32-bit activations leave a softmax whose zeros are only underflow.
            if config["activation_bits"] == 1:
                density = (p != 0).double().mean(dim=(0, 2, 3))
                assert_equal(density, expected[f"eval.attention.{i}.density"], f"density of attention {i}")


def test_training_step(case, device):
    _, model, expected = case
    model = copy.deepcopy(model).to(device).train()
    depths = [len(stage.blocks) for stage in model.stages]
    logits = model(expected["pixel_values"].double().to(device))
    target = expected["teacher_logits"].double().softmax(dim=-1).to(device)
    loss = -(target * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    loss.backward()
    after = model.state_dict()

    assert_equal(logits, expected["train.logits"], "train.logits")
    assert_equal(loss, expected["train.loss"], "train.loss")
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    unchecked = set(gradients)
    for key, value in expected.items():
        kind, _, name = key.removeprefix("train.").partition(".")
        if not key.startswith("train.") or not name:
            continue
        ours = our_name(name, depths)
        if kind == "after":
            assert_equal(after[ours], value, key)
            continue
        gradient = gradients[ours]
        if kind == "grad_norm":
            unchecked.discard(ours)
            gradient = gradient.norm()
        elif kind == "grad_flat_first64":
            gradient = gradient.flatten()[:64]
        # Where the whole gradient is analytically zero, its golden norm is rounding noise.
        noise = expected[f"train.grad_norm.{name}"].item() < ABSOLUTE_BELOW
        assert_equal(gradient, value, key, absolute=ABSOLUTE_BELOW if noise else 0.0)
    assert not unchecked, f"no golden gradient for {sorted(unchecked)}"
