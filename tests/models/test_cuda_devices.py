"""What a CUDA device would refuse in a forward pass, found without one: tensors without storage that claim to be there.

Operations that mix devices raise, and so does what would wait for a number from the device, as `.item()` does. The
backward pass needs a real device.
"""

import pytest
import timm
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

import binaryvit  # noqa: F401 - registers the models
from binaryvit.models.ladder import LADDER

NAMES = [*LADDER["micro"][1:], "reactresnet_micro_patch2_32", "binaryvit_micro_patch2_32_shortcuts"]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_the_forward_pass_stays_on_the_device(name: str, training: bool) -> None:
    model = timm.create_model(name).train(training)
    with FakeTensorMode() as mode:
        tensors = {
            name: mode.from_tensor(tensor).detach().to("cuda").requires_grad_(tensor.requires_grad)
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        }
        logits = functional_call(model, tensors, torch.randn(2, 3, 32, 32, device="cuda"))
        assert logits.device.type == "cuda" and logits.dtype == torch.float32
