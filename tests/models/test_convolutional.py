"""The binary convolutional network: its products are those of signs, it costs what BinaryViT costs, timm can use it."""

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.units import randomized

import binaryvit  # noqa: F401 - registers the models
from binaryvit.errors import BinaryViTError
from binaryvit.models.convolutional import BinaryConvBlock
from binaryvit.models.cost import cost
from binaryvit.models.weights_file import load_inference_weights, save_inference_weights

NAME = "reactresnet_micro_patch2_32"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bits", [(1, 1), (32, 32)])
def test_a_block_is_its_formula(stride: int, bits: tuple[int, int]) -> None:
    block = randomized(BinaryConvBlock(4, 8, 6, stride, *bits)).eval()
    x = torch.randn(2, 36, 4, dtype=torch.float64)
    grid, weight, norm = (x + block.binarize.shift).mT.unflatten(2, (6, 6)), block.conv.weight, block.norm.batch_norm
    if bits[1] == 1:
        grid = F.pad(torch.where(grid >= 0, 1.0, -1.0).double(), (1, 1, 1, 1), value=1.0)
    else:
        grid = F.pad(grid, (1, 1, 1, 1))
    if bits[0] == 1:
        weight = weight.abs().mean((1, 2, 3), keepdim=True) * torch.where(weight >= 0, 1.0, -1.0)
    main = F.conv2d(grid, weight, stride=stride)
    main = F.batch_norm(main, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
    shortcut = F.avg_pool2d(x.mT.unflatten(2, (6, 6)), stride)
    z = main + torch.cat([shortcut, shortcut], 1) - block.act.shift_in.view(-1, 1, 1)
    expected = F.prelu(z, block.act.slope) + block.act.shift_out.view(-1, 1, 1)
    torch.testing.assert_close(block(x), expected.flatten(2).mT)


@pytest.mark.parametrize("dims", [64, ()])
def test_it_says_what_is_wrong_with_its_stages(dims) -> None:
    with pytest.raises(BinaryViTError, match=r"depths=.* describes 3 stages|describes no stage"):
        timm.create_model(NAME, dims=dims)


def test_it_costs_what_binaryvit_costs() -> None:
    counted, other = (cost(timm.create_model(name)) for name in (NAME, "binaryvit_micro_patch2_32"))
    for name in ("parameters", "bops", "ops"):
        assert getattr(counted, name) == pytest.approx(getattr(other, name), rel=0.03), name
    assert counted.bops == 8 * (9 * 64 * 64 * 256)  # seven blocks of equal cost, and two of half of it


def test_it_is_one_of_timms_models(tmp_path) -> None:
    model = timm.create_model(NAME, num_classes=7).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_features(images)
    assert features.shape == (2, 16, 256) and model.forward_head(features, pre_logits=True).shape == (2, 256)
    assert torch.equal(model(images), model.get_classifier()(features.mean(1)))
    save_inference_weights(model, tmp_path / "w.safetensors", NAME, {"num_classes": 7})
    assert torch.equal(load_inference_weights(tmp_path / "w.safetensors")(images), model(images))
    [gradient] = torch.autograd.grad(model.train()(images).sum(), model.stem.proj.weight)
    assert gradient.isfinite().all()
    with pytest.raises(BinaryViTError, match="global_pool='max'"):
        model.reset_classifier(0, "max")
    with pytest.raises(BinaryViTError, match="global_pool='token' needs a CLS token"):
        model.reset_classifier(0, "token")
    model.reset_classifier(0, "avg")
    assert model(images).shape == (2, 256)
    pooled = cost(model).ops_elementwise
    model.reset_classifier(0, "")
    assert torch.equal(model(images), model.forward_features(images))
    assert cost(model).ops_elementwise == pooled - features[0].numel()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"weight_bits": 8}, "weight_bits=8.*1, 32"),
        ({"activation_bits": 2}, "activation_bits=2.*1, 32"),
        ({"img_size": 36}, "img_size=36.*multiple, such as 32"),
        ({"dims": (64, 96, 128)}, "dims=96 in stage 1.*64 channels.*multiple, such as 128"),
        ({"depths": (1, 1)}, "depths=.*2 stages and dims 3"),
    ],
)
def test_inconsistent_arguments_are_refused_by_name(arguments, match) -> None:
    with pytest.raises(BinaryViTError, match=match):
        timm.create_model(NAME, **arguments)


def test_it_takes_other_sizes_and_precisions() -> None:
    model = timm.create_model(NAME, img_size=16, dims=(8, 16), depths=(1, 1), weight_bits=32, activation_bits=32)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    assert cost(model).bops == 0 < cost(model).flops
