"""One contract, timm's, over all registered models; and the arguments that are refused."""

import pytest
import timm
import torch
from helpers.small_models import resampled
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2

from binaryvit.errors import BinaryViTError
from binaryvit.models import ladder
from binaryvit.models.external_checkpoint import load_checkpoint
from binaryvit.models.ladder import LADDER
from binaryvit.models.layers import BinaryLinear, binary_layers
from binaryvit.models.vision_transformer import BinaryVisionTransformer

BINARY = [name for family in LADDER.values() for name in family[1:]]
MICRO = LADDER["micro"]
# The 224 models with fewer, narrower blocks: the contract does not depend on size, the time does.
SMALL_AS_TINY = {
    **{name: {"embed_dims": 24, "num_heads": 2, "depths": 3, "img_size": 64} for name in LADDER["small"][1:5]},
    **{
        name: {"embed_dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1), "mlp_ratios": (2, 2, 2, 2), "img_size": 64,
               "reductions": (4, 2, 1, 1)}
        for name in LADDER["small"][5:]
    },
}  # fmt: skip
MODELS = [*MICRO, *SMALL_AS_TINY]


def create(name: str, **kwargs):
    return timm.create_model(name, **{**SMALL_AS_TINY.get(name, {}), **kwargs})


def images_for(model, batch: int = 2) -> torch.Tensor:
    size = model.img_size if isinstance(model, BinaryVisionTransformer) else model.pretrained_cfg["input_size"][-1]
    return torch.randn(batch, 3, size, size)


@pytest.mark.parametrize("name", BINARY)
def test_registered_with_timm(name):
    assert timm.is_model(name)
    with torch.device("meta"):
        model = timm.create_model(name)
    size = 32 if name in MICRO else 224
    assert model.pretrained_cfg["input_size"] == (3, size, size)
    assert model.num_classes == model.pretrained_cfg["num_classes"] == (10 if name in MICRO else 1000)
    assert dict(model.named_modules())[model.pretrained_cfg["classifier"]] is model.get_classifier()
    assert isinstance(dict(model.named_modules())[model.pretrained_cfg["first_conv"]], torch.nn.Conv2d)
    with pytest.raises(RuntimeError, match="pretrained"):
        timm.create_model(name, pretrained=True)


def test_the_ladders_module_exports_its_models():
    assert {*BINARY, "deit_micro_patch4_32"} == {*ladder.__all__}
    assert all(getattr(ladder, name) is timm.model_entrypoint(name) for name in ladder.__all__)


def test_sizes_may_be_pairs():
    pairs, numbers = (
        create("binaryvit_micro_patch2_32", img_size=a, patch_size=b) for a, b in (((32, 32), (2, 2)), (32, 2))
    )
    assert (pairs.img_size, pairs.feature_info) == (numbers.img_size, numbers.feature_info)
    assert pairs.state_dict().keys() == numbers.state_dict().keys()


def test_the_micro_families_are_of_one_size():
    counts = {name: sum(p.numel() for p in timm.create_model(name).parameters()) for name in MICRO[1:]}
    assert max(counts.values()) < 1.1 * min(counts.values())
    assert all(1.35e6 < count < 1.65e6 for count in counts.values())


@pytest.mark.parametrize("name", MODELS)
def test_features_and_head(name):
    model = create(name, num_classes=5).eval()
    images = images_for(model)
    features = model.forward_features(images)
    assert features.shape[::2] == (2, model.num_features)
    logits = model(images)
    assert logits.shape == (2, 5)
    assert torch.equal(model.forward_head(features), logits)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert create(name, num_classes=0).eval()(images).shape == (2, model.num_features)


@pytest.mark.parametrize("name", MODELS)
def test_reset_classifier(name):
    model = create(name).double()
    model.reset_classifier(4)
    assert model.get_classifier().out_features == model.num_classes == 4
    assert model(images_for(model).double()).shape == (2, 4)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), torch.nn.Identity)


def test_averaging_leaves_the_cls_token_out():
    model = create("reactdeit_micro_patch4_32").eval()
    model.reset_classifier(4, global_pool="avg")
    features = torch.randn(2, 65, 192)
    expected = model.head(features[:, 1:].mean(dim=1))
    torch.testing.assert_close(model.forward_head(features), expected)


@pytest.mark.parametrize("name", MODELS)
def test_intermediates_agree_with_the_forward_pass(name):
    model = create(name).eval()
    images = images_for(model)
    final, all_features = model.forward_intermediates(images)
    assert torch.equal(final, model.forward_features(images))
    assert len(all_features) == len(model.feature_info)
    for info, feature in zip(model.feature_info, all_features, strict=True):
        side = images.shape[-1] // info["reduction"]
        assert feature.shape == (2, info["num_chs"], side, side)
        assert info["module"] in dict(model.named_modules())
    last = model.forward_intermediates(images, indices=1, intermediates_only=True, norm=True)
    tokens = final[:, model.num_prefix_tokens :] if model.num_prefix_tokens else final
    torch.testing.assert_close(last[0].flatten(2).transpose(1, 2), tokens)
    first = model.forward_intermediates(images, indices=[0], stop_early=True, intermediates_only=True)
    assert torch.equal(first[0], all_features[0])


@pytest.mark.parametrize("name", MODELS)
def test_features_only(name):
    model = create(name, features_only=True, out_indices=(0, -1)).eval()
    reference = create(name)
    images = images_for(reference)
    features = model(images)
    channels = [reference.feature_info[i]["num_chs"] for i in (0, -1)]
    assert [feature.shape[1] for feature in features] == model.feature_info.channels() == channels
    assert [images.shape[-1] // feature.shape[-1] for feature in features] == model.feature_info.reduction()


@pytest.mark.parametrize("name", BINARY)
def test_features_only_has_a_default(name):
    expected = len(create(name).stages) if name.startswith("binaryvit") else 3
    assert len(create(name, features_only=True).feature_info) == expected


@pytest.mark.parametrize("name", BINARY)
def test_pruning_keeps_what_the_features_need(name):
    model = create(name).eval()
    images = images_for(model)
    expected = model.forward_intermediates(images, indices=[0], intermediates_only=True)[0]
    kept = 1 if len(model.stages) == 1 else len(model.stages[0].blocks)
    assert model.prune_intermediate_layers([0]) == [0]
    assert sum(len(stage.blocks) for stage in model.stages) == kept
    assert model.num_features == model.head_hidden_size == model.embed_dim == expected.shape[1]
    pruned = model.forward_intermediates(images, indices=[0], intermediates_only=True)[0]
    assert torch.equal(pruned, expected)


@pytest.mark.parametrize("name", BINARY)
def test_every_parameter_is_in_one_group_and_embeddings_do_not_decay(name):
    model = create(name)
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=False))
    assert sorted(parameter for names in groups.values() for parameter in names) == sorted(
        parameter for parameter, _ in model.named_parameters()
    )
    blocks = [parameter for parameter, _ in model.named_parameters() if ".blocks." in parameter]
    layer_of = {parameter: layer for layer, names in groups.items() for parameter in names}
    order = [layer_of[parameter] for parameter in blocks]
    assert order == sorted(order), "deeper blocks come in later groups"
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert names and not any("pos_embed" in n or "cls_token" in n or "shift" in n or "level" in n for n in names)
    assert any(n.endswith("linear.weight") for n in names)


@pytest.mark.parametrize("name", BINARY)
def test_gradient_checkpointing_computes_the_same(name):
    """Of the gradient; the running statistics are updated once more, as always with checkpointed batch norm."""
    model = create(name).double().train()
    images = images_for(model).double()
    gradients, forwards = [], []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        forwards.append(model.stages[0].blocks[0].norm1.batch_norm.num_batches_tracked.item())
    torch.testing.assert_close(*gradients)
    assert forwards == [1, 3], "blocks compute again for the backward pass"


@pytest.mark.parametrize("name", BINARY)
def test_every_parameter_gets_a_gradient(name, device):
    model = create(name).to(device).train()
    model(images_for(model, batch=4).to(device)).square().sum().backward()
    assert not [n for n, parameter in model.named_parameters() if parameter.grad is None]
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", MICRO)
def test_a_checkpoint_path_restores_the_model(name, tmp_path):
    model = timm.create_model(name, num_classes=3).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = timm.create_model(name, num_classes=3, checkpoint_path=str(tmp_path / "model.safetensors")).eval()
    images = images_for(model)
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("name", MICRO[1:])
def test_another_image_size_resamples_the_position_embeddings(name, tmp_path):
    save_file(timm.create_model(name).state_dict(), tmp_path / "model.safetensors")
    larger = timm.create_model(name, img_size=64, checkpoint_path=str(tmp_path / "model.safetensors")).eval()
    assert larger(torch.randn(1, 3, 64, 64)).shape == (1, 10)
    original = timm.create_model(name)
    load_checkpoint(original, tmp_path / "model.safetensors")
    small, large = original.stages[0].pos_embed, larger.stages[0].pos_embed
    assert large.shape[1] - larger.num_prefix_tokens == 4 * (small.shape[1] - original.num_prefix_tokens)
    prefix, side = original.num_prefix_tokens, 2 * original.stages[0].grid_size
    assert torch.equal(large[:, :prefix], small[:, :prefix])
    torch.testing.assert_close(large[:, prefix:], resampled(small[:, prefix:], side))


@pytest.mark.parametrize("bits", [(1, 1), (1, 32), (32, 1), (32, 32)])
def test_bit_widths(bits):
    model = create("binaryvit_micro_patch2_32", weight_bits=bits[0], activation_bits=bits[1]).train()
    inputs = []
    for module in model.modules():
        if isinstance(module, BinaryLinear):
            module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(images_for(model)).sum().backward()
    assert len(inputs) == 34  # six a block, and four reductions
    assert all(set(x.unique().tolist()) <= {-1.0, 1.0} for x in inputs) == (bits[1] == 1)
    assert len(binary_layers(model)) == (36 if bits[0] == 1 else 0)
    assert any("level" in name for name, _ in model.named_parameters()) == (bits[1] == 1)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"global_pool": "token", "pooling_branches": True}, "pooling_branches=True.*global_pool='avg'"),
        ({"global_pool": "token", "pooling_branches": False, "reductions": 2}, "global_pool='token'.*reductions=1"),
        ({"img_size": 30, "patch_size": 4}, "img_size=30.*multiple, such as 32"),
        ({"img_size": (32, 64), "patch_size": 4}, r"img_size=\(32, 64\).*square"),
        ({"embed_dims": 100, "num_heads": 3}, "embed_dims=100.*num_heads=3.*99"),
        ({"embed_dims": (32, 48), "num_heads": 4, "depths": 1}, "embed_dims=48 in stage 1.*32.*multiple, such as 64"),
        ({"embed_dims": (8, 16, 32, 64), "num_heads": 1, "img_size": 20, "patch_size": 4}, "img_size=20.*multiple"),
        ({"reductions": 3, "img_size": 32, "patch_size": 4}, "reductions=3.*8 x 8.*divisor of 8"),
        ({"mlp_ratios": 1.5}, "mlp_ratios=1.5.*multiple of the channels"),
        ({"depths": (1, 2)}, "depths=.*2 stages.*embed_dims 1"),
        ({"depths": 0}, "depths=0.*positive"),
        ({"weight_bits": 2}, "weight_bits=2.*1, 32"),
        ({"activation_bits": True}, "activation_bits=True.*1, 32"),
        ({"merge": "fp"}, "merge='fp'.*'binary', 'full_precision'"),
        ({"global_pool": "max"}, "global_pool='max'.*'avg'"),
    ],
)
def test_inconsistent_arguments_are_refused_by_name(kwargs, match):
    with pytest.raises(BinaryViTError, match=match):
        BinaryVisionTransformer(
            **{"img_size": 32, "patch_size": 4, "embed_dims": 12, "depths": 1, "num_heads": 3} | kwargs
        )


def test_a_cls_token_cannot_be_asked_for_later():
    model = create("binaryvit_micro_patch2_32")
    with pytest.raises(BinaryViTError, match="CLS token"):
        model.reset_classifier(3, global_pool="token")
    with pytest.raises(BinaryViTError, match="output_fmt='NHWC'"):
        model.forward_intermediates(images_for(model), output_fmt="NHWC")
    with pytest.raises(BinaryViTError, match="norm=True"):
        model.forward_intermediates(images_for(model), norm=True)
    with pytest.raises(BinaryViTError, match="stop_early=True ends at a feature of 64 channels"):
        model.forward_intermediates(images_for(model), indices=[0], stop_early=True)


@pytest.mark.parametrize("name", [*MICRO[1:], "reactresnet_micro_patch2_32"])
@pytest.mark.parametrize("shape", [(3, 16, 64), (3, 33, 33), (3, 64, 64), (1, 32, 32)])
def test_images_of_another_shape_are_refused(name, shape):
    """16 x 64 pixels have as many patches as 32 x 32, and 33 x 33 nearly."""
    with pytest.raises(BinaryViTError, match=r"takes images of the shape \(3, 32, 32\), and these have"):
        timm.create_model(name)(torch.zeros(1, *shape))


def test_tokens_of_intermediate_layers_are_those_of_timms_contract():
    model = timm.create_model("reactdeit_micro_patch4_32", depths=1).eval()
    images = images_for(model)
    [grid] = model.forward_intermediates(images, 1, intermediates_only=True)
    [(tokens, cls)] = model.forward_intermediates(
        images, 1, intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True
    )
    assert torch.equal(tokens, grid.flatten(2).mT)
    assert torch.equal(model.norm(torch.cat([cls, tokens], dim=1)), model.forward_features(images))


def test_coarse_groups_of_parameters_are_the_stages():
    model = create("binaryvit_micro_patch2_32")
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=True))
    group_of = {name: group for group, names in groups.items() for name in names}
    blocks = [name for name in group_of if ".blocks." in name]
    stages = {(int(name.split(".")[1]), group_of[name]) for name in blocks}
    assert len(stages) == 3 and sorted(stages) == sorted(stages, key=lambda pair: pair[1])


@pytest.mark.parametrize("name", MODELS)
def test_no_images_have_no_logits(name):
    model = create(name).eval()
    assert model(images_for(model, 0)).shape == (0, model.num_classes)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_images_in_half_precision_are_taken_as_they_are_and_parameters_refused(half):
    model = create("binaryvit_micro_patch2_32").eval()
    images = images_for(model).to(half)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(images), model(images.float()), rtol=0, atol=0)
    with pytest.raises(BinaryViTError, match=r"keep them in float32, and use autocast"):
        model.to(half)(images)
