"""Streaming CKA and cosine against the direct formulas on stored features."""

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

import binaryvit  # noqa: F401 - registers the models
from binaryvit.analysis.precision.capture import StreamingAgreement, comparable_layers, layer_agreement
from binaryvit.errors import BinaryViTError


def direct_cka(x, y):
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with Gram matrices centred on both sides: the kernel form."""
    count = len(x)
    centring = torch.eye(count, dtype=torch.float64) - 1 / count
    k, l = (centring @ (z.double() @ z.double().T) @ centring for z in (x, y))  # noqa: E741
    return ((k * l).sum() / (k.square().sum() * l.square().sum()).sqrt()).item()


def streamed(x, y, parts=(1.0,)):
    agreement, start = StreamingAgreement(), 0
    for end in (*(round(part * len(x)) for part in parts), len(x)):
        if end > start:
            agreement.add(x[start:end], y[start:end])
            start = end
    return agreement


@given(st.integers(0, 1000), st.integers(3, 40), st.integers(1, 6), st.integers(1, 6), st.floats(0, 1))
def test_streaming_is_the_direct_formula(seed, samples, p, q, cut):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, p, generator=generator) * 3 + 10  # an offset, as real features have
    y = x[:, :1] + torch.randn(samples, q, generator=generator)
    agreement = streamed(x, y, sorted([cut, 0.5]))
    assert agreement.samples == samples
    assert agreement.cka == pytest.approx(direct_cka(x, y), rel=1e-6)
    if p == q:
        cosines = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
        assert agreement.cosine == pytest.approx(cosines.mean().item(), rel=1e-5)
    elif p != q:
        assert agreement.cosine != agreement.cosine


def test_what_cka_is_blind_to_and_what_not():
    x = torch.randn(200, 5, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    assert streamed(x, 3 * x @ rotation + 7).cka == pytest.approx(1)
    assert streamed(x, torch.randn(200, 5)).cka < 0.2
    assert streamed(x, -x).cka == pytest.approx(1) and streamed(x, -x).cosine == pytest.approx(-1)
    assert streamed(x, x * torch.tensor([1, 0, 0, 0, 0])).cka < 0.9


def test_tokens_are_samples():
    x, y = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    assert streamed(x, y).samples == 12
    assert streamed(x, y).cka == pytest.approx(streamed(x.flatten(0, 1), y.flatten(0, 1)).cka)


def small(**bits):
    return timm.create_model("binaryvit_micro_patch2_32", img_size=16, num_classes=4, **bits).eval()


def test_layers_of_two_models_against_stored_features():
    model, reference = small(), small(weight_bits=32, activation_bits=32)
    batches = [(torch.randn(3, 3, 16, 16), None), (torch.randn(2, 3, 16, 16), None)]
    layers = ["stages.0.embed", "stages.1.blocks.0.attn", "stages.2", "norm", "head"]
    table = layer_agreement(model, reference, batches, [layer for layer in layers if layer != "stages.2"])
    assert table["layer"].tolist() == ["stages.0.embed", "stages.1.blocks.0.attn", "norm", "head"]
    with torch.no_grad():
        norms = [torch.cat([net.forward_features(images) for images, _ in batches]) for net in (model, reference)]
        logits = [torch.cat([net(images) for images, _ in batches]) for net in (model, reference)]
    table = table.set_index("layer")
    for layer, (x, y) in {"norm": norms, "head": logits}.items():
        assert table.loc[layer, "cka"] == pytest.approx(direct_cka(*(z.flatten(0, -2) for z in (x, y))), rel=1e-6)
        expected = torch.cosine_similarity(x.flatten(0, -2), y.flatten(0, -2)).mean().item()
        assert table.loc[layer, "cosine"] == pytest.approx(expected, rel=1e-5)
        assert table.loc[layer, ["channels", "samples"]].tolist() == [x.shape[-1], x.shape[:-1].numel()]
    assert not any(module._forward_hooks for net in (model, reference) for module in net.modules())


def test_a_model_agrees_with_itself():
    model = small()
    table = layer_agreement(model, model, [(torch.randn(4, 3, 16, 16),)])
    assert table["cka"].tolist() == pytest.approx([1.0] * len(table))
    assert table["cosine"].tolist() == pytest.approx([1.0] * len(table))


def test_the_layers_compared_run_from_input_to_output():
    assert comparable_layers(small())[:9] == [
        "stages.0.embed", "stages.0.blocks.0.attn", "stages.0.blocks.0.mlp", "stages.0.blocks.0",
        "stages.0.blocks.1.attn", "stages.0.blocks.1.mlp", "stages.0.blocks.1", "stages.1.embed",
        "stages.1.blocks.0.attn",
    ]  # fmt: skip
    assert comparable_layers(small())[-2:] == ["norm", "head"] and len(comparable_layers(small())) == 3 + 3 * 5 + 2
    assert comparable_layers(timm.create_model("deit_micro_patch4_32"))[:4] == [
        "patch_embed", "blocks.0.attn", "blocks.0.mlp", "blocks.0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "batches", "sentence"),
    [
        (["stages.0.embde"], [(torch.zeros(1, 3, 16, 16),)], "no layer 'stages.0.embde': did you mean"),
        ([], [(torch.zeros(1, 3, 16, 16),)], "no layer to compare"),
        (None, [], "no images to compare"),
    ],
)
def test_wrong_input_is_refused(layers, batches, sentence):
    model = small()
    with pytest.raises(BinaryViTError, match=sentence):
        layer_agreement(model, model, batches, layers)
    assert not any(module._forward_hooks for module in model.modules())


def test_features_of_different_grids_cannot_be_paired():
    with pytest.raises(BinaryViTError, match="6 and 4 samples"):
        StreamingAgreement().add(torch.zeros(6, 2), torch.zeros(4, 2))


def test_a_constant_feature_has_no_cka():
    assert math.isnan(streamed(torch.ones(5, 2), torch.randn(5, 2)).cka)
