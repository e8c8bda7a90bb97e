"""Statistics of signs: equal to a direct computation on stored arrays, and nothing of the watching remains."""

import math

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from helpers.small_models import VARIANTS, hooks_of, images, model_of
from pandas.testing import assert_frame_equal

from binaryvit.analysis.activations import signs
from binaryvit.errors import BinaryViTError
from binaryvit.models.layers import BinaryActivation


def stored_inputs(model, batch):
    """The whole input of every layer that takes signs, kept by a hook of the test's own."""
    kept = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, inputs, name=name: kept.__setitem__(name, inputs[0].numpy(force=True))
        )
        for name, module in model.named_modules()
        if isinstance(module, BinaryActivation)
    ]
    with torch.no_grad():
        model(batch)
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize("variant", VARIANTS)
def test_counts_equal_a_direct_computation_on_stored_arrays(variant, device):
    model, batch = model_of(variant).to(device), images()
    counts = signs.count_signs(model, [batch])
    channels = signs.sign_channels(counts).set_index("layer")
    layers = signs.sign_layers(counts).set_index("layer")
    histograms = signs.sign_histograms(counts).set_index("layer")
    kept = stored_inputs(model, batch.to(device))
    assert list(layers.index) == [name for name, m in model.named_modules() if isinstance(m, BinaryActivation)]
    for name, x in kept.items():
        shift = model.get_submodule(name).shift.numpy(force=True)
        u = (x + shift).reshape(-1, x.shape[-1])
        expected = pd.DataFrame(
            {
                "channel": range(u.shape[1]),
                "observations": len(u),
                "share_positive": (u >= 0).mean(0),
                "entropy": [-sum(p * math.log2(p) for p in (share, 1 - share) if p) for share in (u >= 0).mean(0)],
                "dead": (u >= 0).all(0) | (u < 0).all(0),
                "shift": shift,
            }
        )
        assert_frame_equal(channels.loc[name].reset_index(drop=True), expected, check_dtype=False, rtol=1e-12)
        bins, _ = np.histogram(u, signs.HISTOGRAM_EDGES)
        assert histograms.loc[name, "count"].tolist() == bins.tolist() and bins.sum() == u.size
        row = layers.loc[name]
        assert (row["channels"], row["dead"]) == (u.shape[1], expected["dead"].sum())
        assert row["entropy"] == pytest.approx(expected["entropy"].mean())


def test_the_split_into_batches_does_not_matter():
    model, batch = model_of(), images(7)
    whole, *others = [signs.count_signs(model, batch.split(size)) for size in (7, 3, 1)]
    for other in others:
        assert_frame_equal(signs.sign_channels(whole), signs.sign_channels(other))
        assert_frame_equal(signs.sign_histograms(whole), signs.sign_histograms(other))


def test_values_at_the_edges_of_bins_and_sign():
    layer = BinaryActivation(2)
    layer.shift.data = torch.tensor([0.0, 0.5])
    count = signs.SignCounts(layer)
    count.update(torch.tensor([[-0.0, 0.5], [1.0, 0.25], [-1.0, -0.5], [9.0, -9.0]]))
    count.update(torch.tensor([[[0.0, 0.375]]]))
    channels = signs.sign_channels({"layer": count})
    assert channels["observations"].tolist() == [5, 5]
    assert (channels["share_positive"] * 5).round().tolist() == [4, 4]  # zero and minus zero are +1
    histogram = signs.sign_histograms({"layer": count}).set_index("bin_left")["count"]
    assert histogram[histogram > 0].to_dict() == {-np.inf: 1, -1.0: 1, 0.0: 3, 0.75: 1, 0.875: 1, 1.0: 2, 4.0: 1}


def test_a_channel_whose_sign_never_changes_is_dead():
    model = model_of()
    layer = model.get_submodule("stages.0.blocks.0.mlp.fc1.binarize")
    layer.shift.data[:3] = torch.tensor([100.0, -100.0, 0.0])
    channels = signs.sign_channels(signs.count_signs(model, [images()]))
    first = channels[channels["layer"] == "stages.0.blocks.0.mlp.fc1.binarize"].iloc[:3]
    assert first["dead"].tolist() == [True, True, False]
    assert first["share_positive"].tolist()[:2] == [1, 0] and first["entropy"].tolist()[:2] == [0, 0]
    assert signs.bit_entropy(np.array([0.5, 0.25])) == pytest.approx([1, 0.8112781244591328])


def test_watching_leaves_outputs_state_and_mode_alone(device):
    model, batch = model_of(dtype=torch.float32).to(device).train(), images(dtype=torch.float32).to(device)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    watched = []
    names = [name for name, _ in model.named_modules() if not name.endswith(("stages", "blocks", "affines"))]
    points = {(name, side): watched.append for name in names for side in ("input", "output")}
    with signs.evaluating(model):
        plain = model(batch)
        with signs.watching(model, points):
            seen = model(batch)
            assert len(hooks_of(model)) == len(points)
        again = model(batch)
    assert len(watched) > len(names)
    assert torch.equal(plain, seen) and torch.equal(plain, again)
    signs.count_signs(model, [batch])
    assert hooks_of(model) == [] and model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_hooks_go_when_a_watcher_fails():
    model = model_of()
    model.stages[0].embed.proj.bias.data.fill_(float("nan"))
    model.train()
    with pytest.raises(BinaryViTError, match="not a number"):
        signs.count_signs(model, [images()])
    assert hooks_of(model) == [] and model.training


def test_models_and_data_without_signs_are_refused():
    with pytest.raises(BinaryViTError, match="BinaryVisionTransformer binarizes no activations"):
        signs.count_signs(model_of(activation_bits=32), [images()])
    with pytest.raises(BinaryViTError, match="VisionTransformer binarizes no activations"):
        signs.count_signs(timm.create_model("deit_micro_patch4_32"), [images()])
    with pytest.raises(BinaryViTError, match="no image"):
        signs.count_signs(model_of(), [])
