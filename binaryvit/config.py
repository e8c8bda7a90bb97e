"""One strict description of one training run.

A `TrainingConfig` that exists is valid: unknown names, wrong types, values out of range and combinations that
contradict each other are refused in sentences, all at once, before anything is loaded or written.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Literal, Self

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator
from timm.data.transforms_factory import create_transform

from binaryvit.errors import BinaryViTError, suggestion
from binaryvit.yaml_file import read_yaml

# These say where and how fast a run happens and what else it keeps, not which numbers it produces. In the key, the
# paths of the teacher and of the initial weights are replaced by what identifies their content.
NOT_IN_KEY = frozenset(
    {"data_dir", "data_label", "teacher", "init_from", "workers", "threads", "checkpoint_minutes", "keep_best"}
)

# Which images a run trains and is evaluated on; all rows of a study share these.
DATA_FIELDS = (
    "data", "data_label", "data_config", "image_column", "label_column", "train_split", "eval_split",
    "max_train_images", "max_eval_images", "holdout_images",
)  # fmt: skip

PRETRAINED = "timm:"  # begins the name of a model in timm, where a path of weights could stand

_NOT_MODEL_ARGS = {
    "num_classes": "comes from the data",
    "img_size": "is set by image_size",
    "drop_rate": "is set by dropout",
    "attn_drop_rate": "is set by attention_dropout",
    "drop_path_rate": "is set by drop_path",
    "in_chans": "is 3: images are RGB",
    "features_only": "would leave no classifier",
    "pretrained": "would load weights: training starts from random ones",
    "checkpoint_path": "would load weights: training starts from random ones",
    "pretrained_cfg": "would change how images are prepared: the variant says that",
    "pretrained_cfg_overlay": "would change how images are prepared: the variant says that",
    "cache_dir": "is of weights that are fetched, and none are",
}

# What the paper's two kinds of runs on ImageNet-1k use, as differences to the class defaults below, which are the
# student's (BinaryViT, section 4.1, and the authors' training scripts).
RECIPES: dict[str, dict[str, Any]] = {
    "student": {},
    "teacher": {
        "weight_decay": 0.05,
        "warmup_epochs": 5,
        "label_smoothing": 0.1,
        "mixup_alpha": 0.8,
        "cutmix_alpha": 1.0,
        "color_jitter": 0.4,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "random_erasing": 0.25,
        "repeated_augmentation": 3,
        "drop_path": 0.1,
    },
}


class TrainingConfig(BaseModel):
    """Everything that determines one run, flat, so that a notebook parameter is a field.

    The defaults are the paper's recipe for binary students; `for_teacher` starts from the full-precision teacher's.
    Raises `BinaryViTError` with one sentence per problem.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    # Model: a timm name, and what is passed to it.
    variant: str
    model_args: dict[str, JsonValue] = {}
    image_size: int | None = Field(None, ge=1)  # pixels; None: the variant's own

    # Data: "digits", a Hugging Face hub name or a local folder.
    data: str = Field("digits", min_length=1)
    data_dir: str | None = None  # local folder that holds the data set named by `data`
    data_label: str | None = None  # how tables call the data set
    data_config: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    train_split: str | None = None  # None: found, and recorded
    eval_split: str | None = None
    max_train_images: int | None = Field(None, ge=1)
    max_eval_images: int | None = Field(None, ge=1)
    # To choose a setting without looking at the evaluation split: train without this many images of the training split,
    # every class in its proportion, and evaluate on them instead.
    holdout_images: int | None = Field(None, ge=1)

    # Teacher: a run folder or weights file of ours, "timm:NAME" (pretrained), or a checkpoint of `teacher_variant`.
    teacher: str | None = Field(None, min_length=1)
    teacher_variant: str | None = None
    distillation_weight: float = Field(0.9, ge=0, le=1)  # share of the distillation loss while mixup or cutmix is on

    # Where training starts: random weights of `seed`, replaced by what fits of this place (`training.initialization`).
    init_from: str | None = Field(None, min_length=1)

    # Optimization.
    seed: int = Field(0, ge=0, lt=2**32)
    latent_scale: float = Field(1.0, gt=0)  # binary layers' latent weights start at this fraction of PyTorch's
    epochs: int = Field(300, ge=1)
    batch_size: int = Field(512, ge=1)  # images per optimizer step, over all processes and accumulation steps
    accumulation_steps: int = Field(1, ge=1)
    optimizer: Literal["adamw"] = "adamw"
    learning_rate: float = Field(
        5e-4, gt=0
    )  # at `learning_rate_batch` images per step; scaled linearly to `batch_size`
    learning_rate_batch: int = Field(512, ge=1)
    min_learning_rate: float = Field(1e-5, ge=0)
    warmup_epochs: int = Field(0, ge=0)
    warmup_learning_rate: float = Field(1e-6, ge=0)
    schedule_every: Literal["epoch", "step"] = "epoch"
    weight_decay: float = Field(0.0, ge=0)
    clip_grad_norm: float | None = Field(None, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1)

    # Targets and augmentation.
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    mixup_alpha: float = Field(0.0, ge=0)
    cutmix_alpha: float = Field(0.0, ge=0)
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the area RandomResizedCrop keeps
    horizontal_flip: float = Field(0.5, ge=0, le=1)
    color_jitter: float | None = Field(None, ge=0)
    auto_augment: str | None = None  # timm's notation
    random_erasing: float = Field(0.0, ge=0, le=1)
    repeated_augmentation: int = Field(1, ge=1)
    eval_crop: float = Field(0.875, gt=0, le=1)

    # Regularization inside the model.
    dropout: float = Field(0.0, ge=0, lt=1)
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1)

    # Execution.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # fp16 scales its loss; on a CPU it is slow
    compile: bool | None = None  # None: where there is a CUDA device; see `resolved`
    workers: int | None = Field(None, ge=0)  # data-loading processes per training process; None: as many as useful
    threads: int | None = Field(None, ge=1)  # CPU threads per training process; None: PyTorch's choice, 1 with several
    processes: int = Field(1, ge=1)  # training processes, one per GPU
    checkpoint_minutes: float = Field(5.0, ge=0)  # between checkpoints inside an epoch; 0: after every step,
    # or every ten with several processes
    keep_best: bool = False  # also keep the weights of the epoch that was best on the evaluation split
    weights_dtype: Literal["float32", "float16"] = "float32"  # of the stored weights that are not binary

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise BinaryViTError("\n".join(_sentence(problem) for problem in error.errors())) from None

    @classmethod
    def for_student(cls, **fields: Any) -> Self:
        """The paper's recipe for binary students, with `fields` changed."""
        return cls(**{**RECIPES["student"], **fields})

    @classmethod
    def for_teacher(cls, **fields: Any) -> Self:
        """The recipe for the full-precision teacher, with `fields` changed."""
        return cls(**{**RECIPES["teacher"], **fields})

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Reads a file of `field: value` lines; the optional entry `recipe: teacher` chooses what the rest changes."""
        fields = read_yaml(path)
        recipe = fields.pop("recipe", "student")
        if recipe not in list(RECIPES):  # it may be of any type, even one without a hash
            raise BinaryViTError(f"{path}: the recipe {recipe!r} does not exist: choose one of {', '.join(RECIPES)}.")
        try:
            return cls(**{**RECIPES[recipe], **fields})
        except BinaryViTError as error:
            raise BinaryViTError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None

    @field_validator("crop_scale", mode="before")
    @classmethod
    def _list_is_tuple(cls, value: Any) -> Any:
        """YAML, JSON and notebooks know lists only."""
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [sentence for wrong, sentence in self._contradictions() if wrong]
        problems += [
            f"model_args holds {name!r}, which {where}: leave it out there."
            for name, where in _NOT_MODEL_ARGS.items()
            if name in self.model_args
        ]
        problems += [
            f"model_args.{name} is {value!r}: give a number, a text, or a list of these."
            for name, value in self.model_args.items()
            if any(isinstance(part, (list, dict)) for part in (value if isinstance(value, list) else [value]))
        ]
        for field in ("variant", "teacher_variant"):
            name = getattr(self, field)
            if name is not None and not timm.is_model(name):
                problems.append(f"{field}={name!r} is not a model of timm{suggestion(name, timm.list_models())}")
        if self.auto_augment is not None:
            try:
                create_transform(32, is_training=True, auto_augment=self.auto_augment)
            except Exception as error:  # timm asserts, and raises whatever its parsing meets
                problems.append(
                    f"auto_augment={self.auto_augment!r} is not in timm's notation ({error or 'unknown policy'}): "
                    f"write for example {RECIPES['teacher']['auto_augment']!r}, or leave it out."
                )
        if problems:
            # Not a ValueError, so pydantic lets it through as it is.
            raise BinaryViTError("\n".join(problems))
        return self

    def _contradictions(self) -> list[tuple[bool, str]]:
        """What can be wrong between fields: whether it is wrong, and the sentence that says so."""
        parts = self.accumulation_steps * self.processes
        low, high = self.crop_scale
        return [
            (
                self.batch_size % parts != 0,
                f"batch_size={self.batch_size} cannot be split over processes={self.processes} times "
                f"accumulation_steps={self.accumulation_steps}: make it a multiple of {parts}.",
            ),
            (
                self.mixing and self.batch_size % (2 * parts) != 0,
                f"batch_size={self.batch_size} gives {self.batch_size / parts:g} images at a time; mixup and cutmix "
                f"mix pairs: make it a multiple of {2 * parts}, or set mixup_alpha and cutmix_alpha to 0.",
            ),
            (
                self.warmup_epochs >= self.epochs,
                f"warmup_epochs={self.warmup_epochs} leaves nothing of epochs={self.epochs}: make it smaller.",
            ),
            (
                self.min_learning_rate > self.peak_learning_rate,
                f"min_learning_rate={self.min_learning_rate:g} is above the highest learning rate "
                f"{self.peak_learning_rate:g} (learning_rate * batch_size / learning_rate_batch): lower it.",
            ),
            (
                self.warmup_epochs > 0 and self.warmup_learning_rate > self.peak_learning_rate,
                f"warmup_learning_rate={self.warmup_learning_rate:g} is above the highest learning rate "
                f"{self.peak_learning_rate:g}: lower it.",
            ),
            (
                not 0 < low <= high <= 1,
                f"crop_scale=({low:g}, {high:g}) is not a range of shares: 0 < first <= second <= 1 must hold.",
            ),
            (
                self.teacher is None and self.teacher_variant is not None,
                f"teacher_variant={self.teacher_variant!r} is given without a teacher: give teacher as well.",
            ),
            (
                self.teacher_variant is not None and (self.teacher or "").startswith(PRETRAINED),
                f"teacher={self.teacher!r} names its model: leave teacher_variant={self.teacher_variant!r} out.",
            ),
            (
                self.teacher is not None and self.label_smoothing > 0 and not self.mixing,
                f"label_smoothing={self.label_smoothing:g} would do nothing: with a teacher and without mixup the "
                "labels are not used. Leave it out, or turn mixup on.",
            ),
            (
                self.train_split is not None and self.train_split == self.eval_split,
                f"train_split and eval_split are both {self.train_split!r}: the evaluation split is never trained on.",
            ),
            (
                self.holdout_images is not None and (self.eval_split is not None or self.max_eval_images is not None),
                "holdout_images evaluates on a part of the training split: leave eval_split and max_eval_images out.",
            ),
        ]

    @property
    def mixing(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    @property
    def peak_learning_rate(self) -> float:
        """Learning rate at the top of the schedule: scaled linearly with the effective batch."""
        return self.learning_rate * self.batch_size / self.learning_rate_batch

    def resolved(self, compile: bool | None = None) -> Self:
        """The configuration with `compile` decided where it is None: as given, else as it is on this machine."""
        if self.compile is not None:
            return self
        return self.model_copy(update={"compile": torch.cuda.is_available() if compile is None else compile})

    def key(self, teacher_identity: str | None = None, init_identity: str | None = None) -> str:
        """Hex SHA-256 of what determines the run's numbers, apart from the data and the training code's version.

        Settings at their default are left out, so a new setting keeps the keys of earlier runs. A
        changed default changes the training code, and so its version.

        `teacher_identity` names the content of the teacher where there is one (`training.teacher.identity` of one that
        exists, `training.teacher.run_identity` of one that will), `init_identity` that of `init_from`. An undecided
        `compile` counts as what it is on this machine (`resolved`).
        """
        for name, identity in (("teacher", teacher_identity), ("init_from", init_identity)):
            if getattr(self, name) is not None and identity is None:
                raise ValueError(f"The key of a configuration with {name} needs the identity of its content.")
        content = self.resolved().model_dump(mode="json", exclude=NOT_IN_KEY, exclude_defaults=True)
        content |= {"teacher": teacher_identity, "data": without_place(self.data)}
        if init_identity is not None:
            content["init_from"] = init_identity
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the defaults of settings that did not exist when it was stored."""
    return TrainingConfig.model_construct().model_dump(mode="json") | config


def without_place(path: str) -> str:
    """A name or relative path unchanged; the last part of an absolute path, which belongs to one machine."""
    return Path(path).name if os.path.isabs(os.path.expanduser(path)) else path


def _sentence(problem: Any) -> str:
    """One sentence for one of pydantic's problems."""
    field = ".".join(str(part) for part in problem["loc"])
    given = problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"{field!r} is not a setting of a training run{suggestion(field, list(TrainingConfig.model_fields))}"
    if problem["type"] == "missing":
        return f"The setting {field!r} is missing."
    choices = re.findall(r"'(.*?)'", problem["ctx"]["expected"]) if problem["type"] == "literal_error" else []
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{field}={given!r} is refused: {message}{suggestion(given, choices)}"
