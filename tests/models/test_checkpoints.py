"""The authors' checkpoints, and files that are refused."""

import pickle
from pathlib import Path

import pytest
import timm
import torch
from helpers.places import TESTS
from safetensors.torch import load_file, save_file

from binaryvit.errors import BinaryViTError
from binaryvit.models.checkpoints import load_checkpoint, our_name

GOLDEN = TESTS / "golden"
PYRAMID = {
    "img_size": 224, "num_classes": 10, "embed_dims": (8, 16, 32, 64), "mlp_ratios": (8, 8, 4, 4),
    "depths": (1, 2, 1, 1),
}  # fmt: skip


def pyramid(**kwargs):
    return timm.create_model("binaryvit_small_patch4_224", **PYRAMID, **kwargs)


def test_the_authors_names_load_through_timms_checkpoint_path_and_the_function():
    path = GOLDEN / "pyramid.weights.safetensors"
    by_timm = pyramid(checkpoint_path=str(path))
    by_function = pyramid()
    load_checkpoint(by_function, path)
    theirs = load_file(path)
    ours = by_timm.state_dict()
    assert len(theirs) == len(ours)
    for name, tensor in theirs.items():
        mapped = our_name(name, [1, 2, 1, 1])
        assert torch.equal(ours[mapped].flatten(), tensor.flatten().to(ours[mapped].dtype)), name
        assert torch.equal(by_function.state_dict()[mapped], ours[mapped])


def test_horizontal_and_vertical_poolings_are_not_mixed_up():
    block = "vit.encoder.layer.0.layerscale_"
    assert our_name(f"{block}h3.alpha", [1]).endswith("pool3x1.alpha")  # vertical: 3 high, 1 wide
    assert our_name(f"{block}w5.move", [1]).endswith("pool1x5.beta")


def test_blocks_are_counted_through_the_stages():
    assert our_name("vit.encoder.layer.2.layernorm_before.weight", [1, 2, 1]).startswith("stages.1.blocks.1.norm1")
    with pytest.raises(BinaryViTError, match=r"block 4.*4 blocks only"):
        our_name("vit.encoder.layer.4.layernorm_before.weight", [1, 2, 1])


@pytest.mark.parametrize("name", ["vit.encoder.layer.0.nonsense.weight", "vit.pooler.weight", "bert.x"])
def test_unknown_names_are_refused(name):
    with pytest.raises(BinaryViTError, match=r"not a name of the authors"):
        our_name(name, [1])


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}])
def test_pytorch_files_and_their_usual_wrappings(wrap, tmp_path):
    model = timm.create_model("reactdeit_micro_patch4_32")
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(wrap(state), tmp_path / "model.pth")
    other = timm.create_model("reactdeit_micro_patch4_32")
    load_checkpoint(other, tmp_path / "model.pth")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("opened"),)


def test_a_pickle_with_code_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malicious()}, tmp_path / "model.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious()))
    for name in ("model.pth", "plain.pth"):
        with pytest.raises(BinaryViTError, match=name):
            load_checkpoint(timm.create_model("reactdeit_micro_patch4_32"), tmp_path / name)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_missing_and_empty_files(suffix, tmp_path):
    model = timm.create_model("reactdeit_micro_patch4_32")
    path = tmp_path / f"model{suffix}"
    with pytest.raises(BinaryViTError, match="no checkpoint file"):
        load_checkpoint(model, path)
    save_file(model.state_dict(), path) if suffix == ".safetensors" else torch.save(model.state_dict(), path)
    for content in (path.read_bytes()[:-1000], b""):
        path.write_bytes(content)
        with pytest.raises(BinaryViTError, match="truncated"):
            load_checkpoint(model, path)
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    with pytest.raises(BinaryViTError, match="no state dict"):
        load_checkpoint(model, tmp_path / "numbers.pth")


def test_another_architecture_is_refused_and_the_model_unchanged(tmp_path):
    save_file(timm.create_model("reactdeit_micro_patch4_32_avg_pool").state_dict(), tmp_path / "m.safetensors")
    model = timm.create_model("reactdeit_micro_patch4_32")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(BinaryViTError, match=r"does not fit.*cls_token"):
        load_checkpoint(model, tmp_path / "m.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
