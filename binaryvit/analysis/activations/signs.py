"""What one bit does to the activations of a binary model: counts over any number of images, in constant memory.

All numbers are counts of integers, so they are exact and do not depend on how the images are split into batches (as
long as the model's outputs don't: rounding may depend on the size of a batch; see `exact_copy`).
Layers are called by their module path. The model is only watched: its outputs stay the same bit for bit.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from binaryvit.errors import BinaryViTError
from binaryvit.models.layers import BinaryActivation, binary_layers
from binaryvit.models.quantizers import at_least_float32

# Bins of the pre-sign activation u; both ends of the window [-1, 1] are edges, the outermost bins are unbounded.
HISTOGRAM_EDGES = np.concatenate([[-np.inf], np.linspace(-4, 4, 65), [np.inf]])

Point = tuple[str, Literal["input", "output"]]  # a module's path, and its first input or its output


@contextmanager
def watching(model: nn.Module, watchers: Mapping[Point, Callable[[Tensor], None]]) -> Iterator[None]:
    """Within the context, each forward pass hands the tensor at each point to its watcher, which must not change it.

    The hooks go when the context ends, also by an error.
    """
    with ExitStack() as hooks:
        for (path, side), watch in watchers.items():
            module = model.get_submodule(path)
            if side == "input":
                handle = module.register_forward_pre_hook(lambda _, inputs, watch=watch: watch(inputs[0]))
            else:
                handle = module.register_forward_hook(lambda _, inputs, output, watch=watch: watch(output))
            hooks.enter_context(handle)
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model is in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def exact_copy(model: nn.Module) -> nn.Module:
    """A copy in float64 whose binary products are exact, for inference.

    Its scales are rounded to float32, as they are stored: the sum of up to 2^29 of them has no rounding in float64, so
    equal products are equal numbers, whatever the order of summation.
    """
    twin = copy.deepcopy(model)
    for layer in binary_layers(twin).values():
        layer.fix_weight(layer.effective_weight().detach().float())
    return twin.double().eval()


def binary_activations(model: nn.Module) -> dict[str, BinaryActivation]:
    """The layers of a model that take the sign of activations, by module path, in their order in the model.

    Raises BinaryViTError when there is none.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BinaryActivation) and module.activation_bits == 1
    }
    if not layers:
        raise BinaryViTError(
            f"This {type(model).__name__} binarizes no activations, so it has no statistics of signs; "
            "choose a model with activation_bits=1."
        )
    return layers


class SignCounts:
    """Counts over the pre-sign activation u = x + b of one layer: per channel, and a histogram of all channels.

    `observations` is the number of values seen per channel (tokens of all images), `positive` counts per channel those
    with u >= 0, whose sign is +1; `histogram` has a count for each bin of HISTOGRAM_EDGES.
    """

    def __init__(self, layer: BinaryActivation):
        self.shift = layer.shift.detach()
        self.observations = 0
        self.positive = torch.zeros_like(self.shift, dtype=torch.int64)
        self.histogram = torch.zeros(len(HISTOGRAM_EDGES) - 1, dtype=torch.int64, device=self.shift.device)

    def update(self, x: Tensor) -> None:
        """Counts one batch of the layer's input, (..., C). Raises BinaryViTError at a value that is not a number."""
        u = (at_least_float32(x) + self.shift).flatten(0, -2)
        if u.isnan().any():
            raise BinaryViTError("An activation is not a number (NaN): the model's training has diverged.")
        self.observations += len(u)
        self.positive += (u >= 0).sum(0)
        # HISTOGRAM_EDGES are eighths: u * 8 is exact, its floor the edge on the left. (bucketize is 10 times slower.)
        bins = (u * 8).floor_().clamp_(-33, 32).add_(33).flatten().long()
        self.histogram += torch.bincount(bins, minlength=len(self.histogram))


def count_signs(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, SignCounts]:
    """The counts of every layer that takes signs, by module path, over `batches` of images (B, in_chans, H, W).

    Images are moved to the model's device and dtype. Raises BinaryViTError when no activation is binary, or when there
    is no image.
    """
    counts = {name: SignCounts(layer) for name, layer in binary_activations(model).items()}
    watchers = {(name, "input"): count.update for name, count in counts.items()}
    like = next(model.parameters())
    with evaluating(model), watching(model, watchers):
        for images in batches:
            model(images.to(like.device, like.dtype))
    if not all(count.observations for count in counts.values()):
        raise BinaryViTError("There is no image to count on; give at least one batch.")
    return counts


def sign_channels(counts: Mapping[str, SignCounts]) -> pd.DataFrame:
    """One row per layer and channel.

    Columns layer, channel, observations, share_positive (of signs +1), entropy (of the sign in bits, 0 to 1), dead (the
    sign never changed), shift (the learned b).
    """
    frames = []
    for layer, count in counts.items():
        positive = count.positive.cpu().numpy() / count.observations
        columns = {"layer": layer, "channel": np.arange(len(positive)), "observations": count.observations}
        columns |= {"share_positive": positive, "entropy": bit_entropy(positive)}
        columns |= {"dead": (positive == 0) | (positive == 1), "shift": count.shift.double().cpu().numpy()}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def sign_layers(counts: Mapping[str, SignCounts]) -> pd.DataFrame:
    """One row per layer: `sign_channels` summed up.

    Columns layer, channels and dead (numbers of channels), entropy (mean over channels, of each by itself).
    """
    layers = sign_channels(counts).groupby("layer", sort=False)
    return layers.agg(channels=("channel", "size"), entropy=("entropy", "mean"), dead=("dead", "sum")).reset_index()


def sign_histograms(counts: Mapping[str, SignCounts]) -> pd.DataFrame:
    """The histograms of u: columns layer, bin_left (inclusive), bin_right (exclusive), count (over all channels)."""
    bins = {"bin_left": HISTOGRAM_EDGES[:-1], "bin_right": HISTOGRAM_EDGES[1:]}
    frames = [
        pd.DataFrame({"layer": layer, **bins, "count": count.histogram.cpu().numpy()})
        for layer, count in counts.items()
    ]
    return pd.concat(frames, ignore_index=True)


def bit_entropy(share: np.ndarray) -> np.ndarray:
    """The entropy in bits, 0 to 1, of a bit that is one with the given share: -p log2 p - (1-p) log2(1-p)."""
    share = np.asarray(share, dtype=np.float64)
    terms = [p * np.log2(p, out=np.zeros_like(p), where=p > 0) for p in (share, 1 - share)]
    return 0.0 - sum(terms)
