"""The loss and accuracy of a model on the evaluation split."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

from binaryvit.models.quantizers import at_least_float32


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy to the labels; accuracies in percent. `top5` is None with fewer than five classes.

    `predicted` holds the class of the largest logit (images,), on the CPU, in the order of the evaluation split.
    """

    loss: float
    top1: float
    top5: float | None
    images: int
    predicted: Tensor


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Mixed precision as PyTorch does it per operation; nothing for "fp32"."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: str = "fp32",
) -> Evaluation:
    """Evaluates `model` on batches of (images, labels) on its device, and restores its mode.

    With several processes, each passes its own batches and gets the result over all of them; images are dealt to the
    processes in turn, as `eval_loader` does.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # loss, right first, right among five, images
    predicted = []
    classes = full = 0
    for images, labels in batches:
        count = len(images)
        full = max(full, count)
        # The last batch is filled up, so that compiled blocks keep their one shape.
        if count < full:
            images = torch.cat([images, images[:1].expand(full - count, -1, -1, -1)])
        with autocast(device, precision):
            logits = at_least_float32(model(images)[:count])
        classes = logits.shape[1]
        best = logits.topk(min(5, classes)).indices
        right = best == labels[:, None]
        predicted.append(best[:, 0])
        sums[0] += F.cross_entropy(logits, labels, reduction="sum")
        sums[1] += right[:, 0].sum()
        sums[2] += right.sum()
        sums[3] += count
    model.train(was_training)
    loss, top1, top5, count = reduce(sums, reduction="sum").tolist()
    process = PartialState()
    everyones = torch.zeros(int(count), dtype=torch.int64, device=device)
    if predicted:
        everyones[process.process_index :: process.num_processes] = torch.cat(predicted)
    return Evaluation(
        loss=loss / count,
        top1=100 * top1 / count,
        top5=100 * top5 / count if classes >= 5 else None,
        images=int(count),
        predicted=reduce(everyones, reduction="sum").cpu(),
    )
