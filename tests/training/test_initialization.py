"""A training that starts from existing weights."""

import shutil

import pytest
import timm
import torch
from helpers.places import TESTS
from helpers.small_models import resampled
from helpers.training_setup import PYRAMID, make_trainer, student, teacher
from safetensors.torch import save_file

from binaryvit.errors import BinaryViTError
from binaryvit.models.external_checkpoint import load_checkpoint
from binaryvit.models.weights_file import load_inference_weights
from binaryvit.training.build import create_model
from binaryvit.training.checkpoint import CHECKPOINT_FILE, load_state, of_prefix
from binaryvit.training.initialization import initialize
from binaryvit.training.teacher import key_of
from binaryvit.training.train import train_in_process as train


def test_a_run_starts_from_what_fits_of_other_weights(finished, tmp_path):
    checkpoint = finished / "student" / CHECKPOINT_FILE
    latent = of_prefix("model", load_state(checkpoint, {})[0])
    weights = finished / "student" / "weights.safetensors"
    stored = load_inference_weights(weights).state_dict()
    run_folder = str(finished / "student")
    for place, expected in ((str(checkpoint), latent), (str(weights), stored), (run_folder, stored)):
        run = make_trainer(student(init_from=place), tmp_path / "nowhere")
        assert "tensors loaded." in run.started_from
        assert all(torch.equal(value, expected[name]) for name, value in run.model.state_dict().items())
        assert all(parameter.requires_grad for parameter in run.model.parameters())
    other = PYRAMID["model_args"] | {"depths": [1, 2], "mlp_ratios": [2, 1]}
    part = make_trainer(student(init_from=str(checkpoint), model_args=other), tmp_path / "nowhere")
    fresh = create_model(student(model_args=other), 10).state_dict()
    loaded = {name for name, value in fresh.items() if name in latent and latent[name].shape == value.shape}
    assert f"{len(loaded)} of {len(fresh)} tensors loaded; as initialized: stages.1" in part.started_from
    assert "; not used: stages.1.blocks.0.mlp" in part.started_from
    for name, value in part.model.state_dict().items():
        assert torch.equal(value, latent[name] if name in loaded else fresh[name]), name
    torch.save({"head.bias": torch.zeros(11), "other": torch.zeros(10)}, tmp_path / "strange.pt")
    with pytest.raises(BinaryViTError, match="holds no tensor with a name and shape"):
        make_trainer(teacher(init_from=str(tmp_path / "strange.pt")), tmp_path)


def test_a_checkpoints_moving_average_is_what_is_taken(tmp_path):
    checkpoint = tmp_path / CHECKPOINT_FILE
    biases = {f"{kind}.head.bias": torch.full((10,), value) for kind, value in (("model", 1.0), ("ema", 2.0))}
    save_file(biases | {"optimizer.0.step": torch.zeros(())}, checkpoint)
    run = make_trainer(student(init_from=str(checkpoint)), tmp_path / "nowhere")
    assert run.model.head.bias.tolist() == [2.0] * 10


def test_weights_under_the_authors_names_are_taken():
    weights = TESTS / "golden" / "pyramid.weights.safetensors"
    shape = {"embed_dims": (8, 16, 32, 64), "depths": (1, 2, 1, 1), "num_classes": 10}
    one, other = (timm.create_model("binaryvit_small_patch4_224", **shape) for _ in range(2))
    load_checkpoint(one, weights)
    assert "not used" not in initialize(other, str(weights))
    assert all(torch.equal(value, one.state_dict()[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize(("first", "second"), [("_avg_pool", ""), ("", "_avg_pool")])
def test_the_ladders_first_step_starts_from_its_neighbour(first, second, tmp_path):
    """One of the two has a CLS token, and so a position embedding of one token more."""
    shape = {"embed_dims": 16, "depths": 1, "num_heads": 2, "mlp_ratios": 2}
    other, model = (timm.create_model(f"reactdeit_micro_patch4_32{name}", **shape) for name in (first, second))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    own = model.stages[0].pos_embed.detach().clone()
    said = initialize(model, str(tmp_path / "other.pt"))
    theirs, now = other.stages[0].pos_embed, model.stages[0].pos_embed
    assert torch.equal(now[:, -64:], theirs[:, -64:]) and now.shape == own.shape
    assert torch.equal(now[:, :-64], own[:, :-64])
    assert ("as initialized: cls_token" in said) == (second == "") and ("not used: cls_token" in said) == (first == "")


def test_starting_weights_of_another_image_size_are_resampled(tmp_path):
    small, large = (
        timm.create_model("vit_tiny_patch16_224", img_size=size, depth=1, num_classes=2) for size in (32, 64)
    )
    torch.save(small.state_dict(), tmp_path / "small.pt")
    assert "tensors loaded." in initialize(large, str(tmp_path / "small.pt"))
    assert torch.equal(large.pos_embed[:, :1], small.pos_embed[:, :1])
    torch.testing.assert_close(large.pos_embed[:, 1:], resampled(small.pos_embed[:, 1:], 4))


def test_starting_weights_are_part_of_the_key_by_their_content(finished, tmp_path):
    weights = finished / "student" / "weights.safetensors"
    copy = tmp_path / "copy.safetensors"
    shutil.copy(weights, copy)
    record = train(student(init_from=str(weights), epochs=1), tmp_path / "run")
    assert record.config["init_from"] == "weights.safetensors"
    assert record.key.config == key_of(student(init_from=str(copy), epochs=1)) != key_of(student(epochs=1))
    with pytest.raises(BinaryViTError, match="init_from 'nowhere' cannot be read"):
        train(student(init_from="nowhere"), tmp_path / "other")
