"""How far the features of two models agree, layer by layer.

The measures compare what two modules of the same name give for the same images. A sample is a token (an image where
there are no tokens), a feature a channel: outputs (batch, tokens, channels) are (batch * tokens, channels) samples.
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import pandas as pd
import torch
from torch import Tensor, nn

from binaryvit.analysis.device import device_of
from binaryvit.errors import BinaryViTError, suggestion

_FEATURES = re.compile(r"patch_embed|stages\.\d+\.embed|(stages\.\d+\.)?blocks\.\d+\.(attn|mlp)|norm|head")


class StreamingAgreement:
    """Linear CKA and mean cosine of two features over samples that come in batches.

    Linear centred kernel alignment (Kornblith et al. 2019, eq. 3 and 5) of X (samples, p) and Y (samples, q), columns
    centred over all samples:

        CKA(X, Y) = ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F)

    It is 1 for features that are equal up to rotation, reflection and one scale, and 0 for uncorrelated ones. The sums
    over samples are kept in float64, so memory grows with p and q alone. The cosine is the mean over samples of
    x . y / (|x| |y|); it needs the same channels and is NaN where p and q differ.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._sums: dict[str, Tensor | float] = {}

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds samples x (..., p) and y (..., q), paired by their leading dimensions."""
        x, y = x.detach().flatten(0, -2).double(), y.detach().flatten(0, -2).double()
        if len(x) != len(y):
            raise BinaryViTError(
                f"Features of {len(x)} and {len(y)} samples cannot be paired: take layers of one grid."
            )
        cosine = torch.cosine_similarity(x, y).sum() if x.shape == y.shape else torch.nan
        new = {"x": x.sum(0), "y": y.sum(0), "xx": x.T @ x, "yy": y.T @ y, "xy": x.T @ y, "cosine": cosine}
        self.samples += len(x)
        self._sums = {name: self._sums.get(name, 0) + value for name, value in new.items()}

    def _covariance(self, one: str, other: str) -> Tensor:
        """Sum over samples of the product of two centred features."""
        return self._sums[one + other] - torch.outer(self._sums[one], self._sums[other]) / self.samples

    @property
    def channels(self) -> int:
        """p, the number of features of the first argument."""
        return len(self._sums["x"])

    @property
    def cka(self) -> float:
        """Linear CKA of the samples so far; NaN where one of the features is constant."""
        cross, own, others = (self._covariance(*pair).square().sum() for pair in ("xy", "xx", "yy"))
        return float(cross / (own * others).sqrt())

    @property
    def cosine(self) -> float:
        """Mean cosine of the samples so far."""
        return float(self._sums["cosine"] / self.samples)


def comparable_layers(model: nn.Module) -> list[str]:
    """Paths of a model's embeddings and merges, each block's attention, FFN and end, its final norm and classifier."""
    paths = []
    for path in dict(model.named_modules()):
        if _FEATURES.fullmatch(path):
            paths.append(path)
        if path.endswith(".mlp"):
            paths.append(path.removesuffix(".mlp"))
    return paths


@torch.no_grad()
def layer_agreement(
    model: nn.Module,
    reference: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    layers: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Agreement of a model's features with those of another model of the same architecture, on the same images.

    Args:
        model, reference: in evaluation mode.
        batches: tuples whose first entry is images (batch, 3, height, width).
        layers: module paths that both models have; None: `comparable_layers`.

    Returns:
        One row per layer, in the given order: layer, channels, samples, cka, cosine.

    Raises:
        BinaryViTError: a layer that one of the models does not have, none at all, or no images.
    """
    layers = comparable_layers(model) if layers is None else list(layers)
    if not layers:
        raise BinaryViTError("There is no layer to compare: name some, as module paths.")
    agreements = {layer: StreamingAgreement() for layer in layers}
    features: list[dict[str, Tensor]] = [{}, {}]
    with ExitStack() as stack:
        for captured, one in zip(features, (model, reference), strict=True):
            modules = dict(one.named_modules())
            for layer in layers:
                if layer not in modules:
                    raise BinaryViTError(f"{type(one).__name__} has no layer {layer!r}{suggestion(layer, [*modules])}")
                hook = modules[layer].register_forward_hook(
                    lambda _, inputs, output, layer=layer, captured=captured: captured.update({layer: output})
                )
                stack.callback(hook.remove)
        for images, *_ in batches:
            model(images.to(device_of(model))), reference(images.to(device_of(reference)))
            for layer, agreement in agreements.items():
                agreement.add(*(captured.pop(layer) for captured in features))
    if not all(agreement.samples for agreement in agreements.values()):
        raise BinaryViTError("There are no images to compare the models on.")
    columns = ("channels", "samples", "cka", "cosine")
    rows = {layer: [getattr(agreement, name) for name in columns] for layer, agreement in agreements.items()}
    return pd.DataFrame.from_dict(rows, "index", columns=columns).rename_axis("layer").reset_index()
