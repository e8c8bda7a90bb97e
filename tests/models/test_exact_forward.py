"""With 1-bit weights and activations the forward pass does not depend on the precision of training."""

import copy
import itertools

import pytest
import timm
import torch

import binaryvit  # noqa: F401 - registers the models
from binaryvit.models.ladder import LADDER
from binaryvit.models.ops import native
from binaryvit.training.build import compile_blocks

# The whole ladder, and the model with the widest products.
WIDEST = "binaryvit_small_patch4_224"
BINARY = [*(name for name in LADDER["micro"][1:] if not name.endswith("some_fp")), WIDEST]
SMALL = {WIDEST: dict(img_size=64, depths=(1, 1, 1, 1), reductions=(8, 4, 1, 1))}


# One block with all there is to compile: spatial reduction, pooling branches, affine.
ONE_BLOCK = dict(img_size=16, embed_dims=32, depths=1, num_heads=2, mlp_ratios=2, reductions=2)


def model_and_images(variant: str, device: torch.device, **arguments) -> tuple[torch.nn.Module, torch.Tensor]:
    """A model whose statistics are not the initial ones; the 224 model at 64 pixels."""
    arguments = arguments or SMALL.get(variant, {})
    torch.manual_seed(0)
    model = timm.create_model(variant, num_classes=7, **arguments).to(device)
    images = torch.randn(4, 3, *[arguments.get("img_size", 32)] * 2).to(device)
    model(images)
    return model, images


@pytest.mark.parametrize("variant", BINARY)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_under_autocast_logits_are_the_same(
    variant: str, half: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    # C++ steps, PyTorch's and the modules (without gradients) round differently, which may flip a sign. Autocast in
    # float16 excludes the C++ steps, so they are excluded without it too.
    if half == torch.float16:
        monkeypatch.setattr(native, "fits", lambda *_: False)
    model, images = model_and_images(variant, device)
    for training, gradients in itertools.product((True, False), repeat=2):
        model.train(training)
        with torch.set_grad_enabled(gradients):
            expected = copy.deepcopy(model)(images)
            with torch.autocast(device.type, half):
                found = copy.deepcopy(model)(images)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiled_in_bfloat16_too(device: torch.device) -> None:
    """Without gradients a CPU compiles what a GPU does in training: the modules, with the batch's statistics."""
    model, images = model_and_images("binaryvit_micro_patch2_32", device, **ONE_BLOCK)
    compiled = compile_blocks(copy.deepcopy(model))
    with torch.no_grad():
        expected = model(images)
        with torch.autocast(device.type, torch.bfloat16):
            found = compiled(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
