"""Binary vision transformers after BinaryViT (Le & Li, CVPRW 2023); importing it registers the models with timm.

Attributes:
    LADDER: the timm names of the ladder's models, by family (`models.ladder`).
    load_model: the model of a run's stored weights (`models.weights_file.load_inference_weights`).
    TrainingConfig: what a run is trained with (`config`).
    train: trains a configuration into a folder (`training.launch`).
"""

from typing import Any

from binaryvit.config import TrainingConfig
from binaryvit.models import convolutional, shortcuts_only  # noqa: F401 - they register their models with timm
from binaryvit.models.ladder import LADDER
from binaryvit.models.weights_file import load_inference_weights as load_model

__all__ = ["LADDER", "TrainingConfig", "load_model", "train"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    # Training needs more packages, and seconds to import them; a model does not wait for them.
    if name == "train":
        from binaryvit.training.launch import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
