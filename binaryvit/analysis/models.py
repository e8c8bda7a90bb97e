"""Models from outside of a study, to look into beside its runs."""

from pathlib import Path

import timm
from torch import nn

from binaryvit.errors import BinaryViTError, suggestion
from binaryvit.models.external_checkpoint import load_checkpoint, read_state_dict
from binaryvit.models.weights_file import load_inference_weights
from binaryvit.training.build import pretrained_model


def open_model(name: str | None, checkpoint: str | Path | None = None) -> nn.Module:
    """A trained model, in evaluation mode.

    Args:
        name: in timm (this library's variants are among them); None where the checkpoint holds inference weights of
            this library, which say what they are of.
        checkpoint: its weights, with timm's names or those of the authors' code; None: timm's published ones.

    Raises:
        BinaryViTError: neither is given, there is no model of that name, or the weights can't be had or don't fit.
    """
    if name is None:
        if checkpoint is None:
            raise BinaryViTError("No model is chosen: give its name in timm, its checkpoint, or both.")
        return load_inference_weights(checkpoint)
    if not timm.is_model(name):
        raise BinaryViTError(f"timm has no model {name!r}{suggestion(name, timm.list_models())}")
    if checkpoint is None:
        return pretrained_model(name).eval()
    classes = _classes(read_state_dict(checkpoint))
    model = timm.create_model(name) if classes is None else timm.create_model(name, num_classes=classes)
    load_checkpoint(model, checkpoint)
    return model.eval()


def _classes(state_dict: dict) -> int | None:
    """How many classes a checkpoint distinguishes; None where its classifier has another name."""
    classifiers = (state_dict[name] for name in ("head.weight", "classifier.weight") if name in state_dict)
    return next((len(weight) for weight in classifiers), None)
