"""From a notebook's parameters to the configuration of a run, through the recipe of its variant."""

from typing import Any

from binaryvit.config import RECIPES, TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.models.ladder import BINARY_VARIANTS

# The paper's recipe is for millions of photographs; with these settings a model learns the digits in a few epochs.
_DIGITS = {"batch_size": 64, "learning_rate": 2e-3, "learning_rate_batch": 64, "crop_scale": (0.7, 1.0)}
_DIGITS |= {"horizontal_flip": 0.0, "eval_crop": 1.0}
DIGITS_SETTINGS: dict[str, dict[str, Any]] = {
    "student": _DIGITS,
    "teacher": _DIGITS
    | {"learning_rate": 1e-3, "warmup_epochs": 1, "mixup_alpha": 0.0, "cutmix_alpha": 0.0, "auto_augment": None}
    | {"color_jitter": None, "random_erasing": 0.0, "repeated_augmentation": 1, "drop_path": 0.0},
}


def recipe_of(variant: str) -> str:
    """The recipe whose defaults a variant is trained with: "student" for the binary ones, "teacher" for all others."""
    return "student" if variant in BINARY_VARIANTS else "teacher"


def configure(settings: dict[str, Any] | None, **parameters: Any) -> TrainingConfig:
    """The configuration of one run from a notebook's parameters.

    A parameter that is None is the default of the variant's recipe; `settings` holds any other field of TrainingConfig,
    and there None is a value like any other. When `settings` itself is None, the digits get what suits them
    (`DIGITS_SETTINGS`, where no parameter says otherwise) and other data nothing. Raises BinaryViTError when a field is
    unknown, wrong, or given twice.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    recipe = recipe_of(str(given.get("variant")))
    if settings is None:
        digits = given.get("data") == "digits"
        settings = {name: value for name, value in DIGITS_SETTINGS[recipe].items() if digits and name not in given}
    if not isinstance(settings, dict):
        raise BinaryViTError(f"settings must be a mapping of TrainingConfig's fields to values, not {settings!r}.")
    twice = sorted(given.keys() & settings.keys())
    if twice:
        raise BinaryViTError(f"Given twice, as a parameter and in settings: {', '.join(twice)}. Give each once.")
    return TrainingConfig(**{**RECIPES[recipe], **given, **settings})
