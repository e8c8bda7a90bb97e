"""Teachers: what identifies them, what they must share with the data, and what they see."""

import warnings

import pytest
import timm
import torch
from helpers.training_setup import write_teacher

from binaryvit.errors import BinaryViTError
from binaryvit.models.weights_file import load_inference_weights, read_weights_file, save_inference_weights
from binaryvit.records.run_record import read_record
from binaryvit.training.stored import evaluate_stored
from binaryvit.training.teacher import Teacher, identity, load_teacher, run_identity


def test_teacher_identity_is_its_content(finished, tmp_path):
    run = finished / "teacher"
    assert identity(str(run)) == run_identity(read_record(run).key)
    file = run / "weights.safetensors"
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    assert identity(str(copy)) == identity(str(file)) != identity(str(run))
    assert identity("timm:vit_tiny_patch16_224") == "timm:vit_tiny_patch16_224"


def test_unfinished_teacher_is_refused(tmp_path):
    with pytest.raises(BinaryViTError, match="not a finished run: train it first"):
        identity(str(tmp_path))


def test_teacher_of_other_classes_is_refused(tmp_path):
    path = write_teacher(tmp_path / "teacher.safetensors")
    with pytest.raises(BinaryViTError, match="distinguishes 10 classes and the data have 7"):
        load_teacher(str(path), None, list("abcdefg"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("1023456789", "classes of the data in another order; it calls class 0 '1' and the data call it '0'"),
        ("a123456789", None),
        ("0123456789", None),
    ],
)
def test_classes_are_compared_by_name(names, said, finished, tmp_path):
    path = tmp_path / "weights.safetensors"
    description = read_weights_file(finished / "student" / "weights.safetensors").description
    model = load_inference_weights(finished / "student" / "weights.safetensors")
    save_inference_weights(model, path, description.variant, description.model_args, class_names=tuple(names))
    for use in (
        lambda: load_teacher(str(path), None, list("0123456789")),
        lambda: evaluate_stored(path, data="digits"),
    ):
        if said:
            with pytest.raises(BinaryViTError, match=said):
                use()
        elif names.startswith("a"):
            with pytest.warns(UserWarning, match="calls class 0 'a' and the data call it '0': are they the same"):
                use()
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                use()


def test_teacher_from_a_local_checkpoint(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = load_teacher(str(tmp_path / "weights.pt"), "vit_tiny_patch16_224", list("abcde"))
    images = torch.rand(1, 3, 224, 224)
    assert torch.equal(loaded(images), model.eval()(images))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with pytest.raises(BinaryViTError, match="needs teacher_variant"):
        load_teacher(str(tmp_path / "weights.pt"), None, list("abcde"))
    with pytest.raises(BinaryViTError, match="is a folder: leave teacher_variant out"):
        load_teacher(str(tmp_path), "vit_tiny_patch16_224", list("abcde"))


def test_teacher_sees_images_in_its_own_size_and_normalization():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, depth=1).eval()  # mean and std 0.5
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    pixels = torch.rand(2, 3, 64, 64)
    tensors = [torch.tensor(values).view(3, 1, 1) for values in (mean, std)]
    probabilities = Teacher(model, mean, std)((pixels - tensors[0]) / tensors[1])
    torch.testing.assert_close(probabilities, model((pixels - 0.5) / 0.5).softmax(1).detach())
    assert Teacher(model, mean, std)(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert not probabilities.is_inference()
