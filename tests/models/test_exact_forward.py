"""With 1-bit weights and activations the forward pass does not depend on the precision of training."""

import copy

import pytest
import timm
import torch

import binaryvit  # noqa: F401 - registers the models
from binaryvit.models.ladder import LADDER
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
def test_under_autocast_logits_are_the_same(variant: str, half: torch.dtype, device: torch.device) -> None:
    model, images = model_and_images(variant, device)
    for mode in (True, False):
        model.train(mode)
        other = copy.deepcopy(model)
        expected = model(images)
        with torch.autocast(device.type, half):
            found = other(images)
            with torch.no_grad():
                unseen = copy.deepcopy(model)(images)
        assert found.dtype == torch.float32
        # In training on a CPU, bfloat16 takes the same C++ step; float16 takes PyTorch's, which rounds differently.
        close = dict(rtol=1e-5, atol=1e-5) if half == torch.bfloat16 or not mode else dict(rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found, expected, **close)
        torch.testing.assert_close(unseen, expected, rtol=1e-3, atol=1e-3)


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
