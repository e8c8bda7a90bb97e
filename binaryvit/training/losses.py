"""What a model is trained to minimize."""

from dataclasses import dataclass

import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from binaryvit.config import TrainingConfig
from binaryvit.models.quantizers import at_least_float32


@dataclass(frozen=True)
class Loss:
    """A batch's mean loss (0-dim, at least float32), and the parts it was mixed from; a part not used is None."""

    total: Tensor
    distillation: Tensor | None
    label: Tensor | None


def create_mixup(config: TrainingConfig, num_classes: int) -> Mixup | None:
    """timm's mixup and cutmix of a batch's images and labels, as DeiT uses them; None when both are off."""
    if not config.mixing:
        return None
    alphas = config.mixup_alpha, config.cutmix_alpha
    return Mixup(*alphas, label_smoothing=config.label_smoothing, num_classes=num_classes)


def training_loss(
    config: TrainingConfig, logits: Tensor, labels: Tensor, teacher_probabilities: Tensor | None = None
) -> Loss:
    """The loss of BinaryViT's recipe (section 4.1, with the mixture of the authors' training code).

    Distillation is the soft cross-entropy to the teacher, mean over the batch of -sum softmax(t) log_softmax(o) at
    temperature 1. It is all there is with a teacher; with mixup or cutmix on, it counts w = `distillation_weight` and
    the cross-entropy to the mixed labels 1 - w. Without a teacher there are the labels alone, smoothed where asked.

    Args:
        config: mixing, distillation_weight, label_smoothing.
        logits: (B, classes).
        labels: classes (B,), or with mixing their mixed (and smoothed) probabilities (B, classes).
        teacher_probabilities: (B, classes), or None without a teacher.
    """
    logits = at_least_float32(logits)
    label = distillation = None
    if teacher_probabilities is not None:
        distillation = F.cross_entropy(logits, teacher_probabilities)
    if config.mixing:
        label = F.cross_entropy(logits, labels)
    elif teacher_probabilities is None:
        label = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    if distillation is None:
        return Loss(label, None, label)
    if label is None:
        return Loss(distillation, distillation, None)
    weight = config.distillation_weight
    return Loss(weight * distillation + (1 - weight) * label, distillation, label)
