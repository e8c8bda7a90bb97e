"""BinaryViT without its binary products: nothing binary is left, all else is."""

import timm
import torch
from helpers.units import randomized

import binaryvit  # noqa: F401 - registers the models
from binaryvit.models.cost import cost
from binaryvit.models.ladder import variant_style
from binaryvit.models.layers import BinaryActivation, BinaryLinear, binary_layers
from binaryvit.models.weights_file import load_inference_weights, save_inference_weights

NAME = "binaryvit_micro_patch2_32"


def test_it_is_binaryvit_with_products_of_zero() -> None:
    control = timm.create_model(f"{NAME}_shortcuts")
    randomized(control).eval()
    model = timm.create_model(NAME).double().eval()
    names = {}
    for name, value in control.state_dict().items():
        theirs = name.replace("embed.shortcut.beta", "embed.norm.batch_norm.bias").replace("embed.shortcut.", "embed.")
        names[theirs.replace("beta", "norm.batch_norm.bias") if theirs.endswith(".beta") and "pool" not in name and
              "affine" not in name else theirs] = value  # fmt: skip
    missing, unexpected = model.load_state_dict(names, strict=False)
    assert not unexpected
    assert {name.rsplit(".", 1)[-1] for name in missing} == {
        "weight", "shift", "level", "running_mean", "running_var"
    }  # fmt: skip
    for module in model.modules():  # a batch norm of zeros gives its beta
        if isinstance(module, BinaryLinear) or type(module).__name__ == "BinaryConv2d":
            module.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
        if type(module).__name__ == "BinaryAttention":
            module.norm.register_forward_hook(lambda m, _inputs, output: m.batch_norm.bias.expand_as(output))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(control(images), model(images))


def test_nothing_binary_is_left_and_every_parameter_learns(tmp_path) -> None:
    control = timm.create_model(f"{NAME}_shortcuts", num_classes=7)
    assert not binary_layers(control) and not any(isinstance(m, BinaryActivation) for m in control.modules())
    counted = cost(control)
    assert counted.bops == counted.binary_weights == 0 < counted.flops < cost(timm.create_model(NAME)).ops
    images = torch.randn(2, 3, 32, 32)
    control(images).sum().backward()
    assert all(parameter.grad is not None for parameter in control.parameters())
    control.eval()
    save_inference_weights(control, tmp_path / "w.safetensors", f"{NAME}_shortcuts", {"num_classes": 7})
    assert torch.equal(load_inference_weights(tmp_path / "w.safetensors")(images), control(images))


def test_it_can_be_told_from_the_convolutional_network_in_figures():
    names = ("binaryvit_micro_patch2_32_shortcuts", "reactresnet_micro_patch2_32")
    assert len({variant_style(name).marker for name in names}) == 2
