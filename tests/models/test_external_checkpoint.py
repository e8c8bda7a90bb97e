"""Checkpoints from outside of this library, and files that are refused."""

import pickle
from pathlib import Path
from unittest.mock import Mock

import pytest
import timm
import torch
from safetensors.torch import save_file

from binaryvit.errors import BinaryViTError
from binaryvit.models.bits import pack_weight
from binaryvit.models.external_checkpoint import load_checkpoint, read_state_dict
from binaryvit.models.layers import binary_layers


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
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
    for name in ("model.pth", "plain.pth"):
        with pytest.raises(BinaryViTError, match=f"{name}.*could run code"):
            load_checkpoint(timm.create_model("reactdeit_micro_patch4_32"), tmp_path / name)
    assert not (tmp_path / "opened").exists()


def test_what_only_fails_to_be_read_is_not_accused_of_holding_code(tmp_path, monkeypatch):
    (tmp_path / "model.pth").touch()
    for error in (KeyError, IndexError, TypeError):
        monkeypatch.setattr(torch, "load", Mock(side_effect=error))
        with pytest.raises(BinaryViTError, match=f"can't be read.*{error.__name__}"):
            load_checkpoint(timm.create_model("reactdeit_micro_patch4_32"), tmp_path / "model.pth")


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
    for content in ({"a": 1}, {0: torch.zeros(1)}):
        torch.save(content, tmp_path / "numbers.pth")
        with pytest.raises(BinaryViTError, match="no state dict"):
            load_checkpoint(model, tmp_path / "numbers.pth")


def test_safetensors_are_known_by_their_content(tmp_path):
    model = timm.create_model("reactdeit_micro_patch4_32")
    save_file(model.state_dict(), tmp_path / "weights.bin")
    assert read_state_dict(tmp_path / "weights.bin").keys() == model.state_dict().keys()


def test_a_scale_of_another_shape_is_refused(tmp_path):
    model = timm.create_model("reactdeit_micro_patch4_32")
    name, layer = next(iter(binary_layers(model).items()))
    bits, _ = pack_weight(layer)
    state_dict = {key: value for key, value in model.state_dict().items() if key != f"{name}.weight"}
    state_dict |= {f"{name}.weight.bits": bits, f"{name}.weight.scale": torch.tensor(1.0)}
    save_file(state_dict, tmp_path / "m.safetensors")
    with pytest.raises(BinaryViTError, match=r"does not fit.*scales of shape \(\) for a weight of shape"):
        load_checkpoint(model, tmp_path / "m.safetensors")


def test_another_architecture_is_refused_and_the_model_unchanged(tmp_path):
    save_file(timm.create_model("reactdeit_micro_patch4_32_avg_pool").state_dict(), tmp_path / "m.safetensors")
    model = timm.create_model("reactdeit_micro_patch4_32")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(BinaryViTError, match=r"does not fit.*cls_token"):
        load_checkpoint(model, tmp_path / "m.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
