"""What the models of a study attend to: rolled out to the image, head by head, and what binarization makes of it.

Statistics are over evaluation images; pictures show images that may be shared, or your own.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from binaryvit.analysis.attention import figures, findings
from binaryvit.analysis.attention.capture import AttentionCapture, attention_statistics, evenness_of_chance
from binaryvit.analysis.attention.rollout import output_by_place
from binaryvit.analysis.device import on_best_device
from binaryvit.analysis.images import ExampleImages, Images, evaluation_batches, example_images, images_for
from binaryvit.analysis.labels import first_seeds, labelled, model_label
from binaryvit.analysis.measurements import measured
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy, StoredRun
from binaryvit.errors import BinaryViTError
from binaryvit.models.shapes import image_size
from binaryvit.training.build import input_settings

_VERSION, _PLACES_VERSION = 3, 4  # of the measuring code in this file, and of that of `attended_places`
_ATTENDED = "attended: a probability above half the learned level a"


def drawings(
    opened: OpenStudy, images: int = 200, examples: Images = 2, place: tuple[float, float] = (0.5, 0.5)
) -> list[Drawing]:
    """All figures on attention; the parameters are those of the functions that make them."""
    made = [side_by_side(opened, examples), *heads(opened, examples, place)]
    made += [density(opened, images), evenness(opened, images)]
    return [drawing for drawing in made if drawing]


def side_by_side(opened: OpenStudy, examples: Images = 2) -> Drawing:
    """Attention rolled out from the output to the image, all models next to each other.

    Args:
        opened: whose runs. Of several seeds the first is shown.
        examples: the images of the picture, see `images.example_images`.

    Raises BinaryViTError when a selection is wrong or empty, or a run's model has no attention.
    """
    runs = _shown(opened)
    images = example_images(runs[0], examples)
    places = _places(opened, runs, examples)
    inputs = {"places": places, "pictures": _pixels(images)}
    said = findings.of_rollouts(places)
    note = "first seed of each model" if any(run.label != model_label(run) for run in runs) else ""
    return Drawing.of(
        opened, "attention_side_by_side", inputs, said, lambda claim: figures.side_by_side(places, images, claim, note)
    )


def heads(opened: OpenStudy, examples: Images = 2, place: tuple[float, float] = (0.5, 0.5)) -> list[Drawing]:
    """What a patch attends to in every head: a figure for each model, the teacher's first.

    Args:
        opened, examples: see `side_by_side`.
        place: of the patch, (down, right), shares in [0, 1) of the sides of an image.

    Raises BinaryViTError when a selection is wrong or empty, a run's model has no attention, or the place is outside.
    """
    _check_place(place)
    runs = _shown(opened)
    images = example_images(runs[0], examples)
    maps = _on_examples(
        opened, "attention_maps", _VERSION, runs, examples, {"place": list(place)},
        lambda model, inputs: attended_by(model, inputs, place),
    )  # fmt: skip
    places = _places(opened, runs, examples)
    made = []
    for run in runs:
        own, grid = maps[maps["run"] == run.id], places[places["run"] == run.id]
        made.append(_draw_heads(opened, run.id, run.label, own, images, _patch_at(place, grid)))
    return made


def heads_of_model(
    opened: OpenStudy, model: nn.Module, label: str, examples: Images = 2, place: tuple[float, float] = (0.5, 0.5)
) -> Drawing:
    """Any model's attention by head on the study's example images.

    The model may be one of timm's, with its own size of images, and need not be binary. Raises BinaryViTError when it
    has no attention over patches of the image.
    """
    _check_place(place)
    reference = opened.teacher() or opened.runs()[0]
    images = images_for(reference.config, ((3, *image_size(model)), *input_settings(model)[1:]), examples)
    patch = _patch_at(place, attended_places(model, images))
    return _draw_heads(opened, label, label, attended_by(model, images, place), images, patch)


def density(opened: OpenStudy, images: int = 200) -> Drawing | None:
    """How many keys each head keeps, and how much of the probability is on them; None: no run has binary attention.

    `images`: how many evaluation images the statistics are over.

    Raises BinaryViTError when a selection is wrong or empty, or what is not measured yet needs data that are not at
    hand.
    """
    binary = head_statistics(opened, images).dropna(subset="level")
    if binary.empty:
        return None
    shares, said = {"density": "keys attended", "kept": "probability\non them"}, findings.of_density(binary)
    return Drawing.of(
        opened, "attention_density", {"statistics": binary}, said,
        lambda claim: figures.by_block(
            binary, shares, claim, ("kept", "density"), f"dashed: if attention were even\n{_ATTENDED}"
        ),
    )  # fmt: skip


def evenness(opened: OpenStudy, images: int = 200) -> Drawing:
    """How even attention is before its binarization, against that of random signs; see `density`."""
    statistics = head_statistics(opened, images)
    statistics["chance"] = statistics["keys"].map(evenness_of_chance).where(statistics["level"].notna())
    shares, said = {"evenness": "entropy / ln(keys)\n(lower: more selective)"}, findings.of_evenness(statistics)
    return Drawing.of(
        opened, "attention_evenness", {"statistics": statistics}, said,
        lambda claim: figures.by_block(
            statistics, shares, claim, ("evenness", "chance"), "dashed: of random signs, with as many keys"
        ),
    )  # fmt: skip


def attended_by(model: nn.Module, images: ExampleImages, place: tuple[float, float]) -> pd.DataFrame:
    """What the patch at a place of each image attends to.

    One row per image, layer, head and place of the keys' grid. Columns: image, layer (module path), head, row, column,
    ratio (probability times number of keys), attended (1 where it is a after binarization, else 0; NaN where the
    attention is not binary), off (whether the layer's attention is). Keys without a place in the image (a CLS token)
    are left out.
    """
    frames = []
    for each in AttentionCapture(model)(images.inputs):
        query = each.query_at(place)
        ratio = each.on_key_grid(each.probabilities[:, :, query]) * each.probabilities.shape[-1]
        attended = (each.on_key_grid(each.used[:, :, query]) > 0).float()
        frame = _long(["image", "head", "row", "column"], images.names, ratio=ratio, attended=attended)
        frame.insert(1, "layer", each.layer)
        frame["off"] = each.off
        frames.append(frame if each.level is not None else frame.assign(attended=np.nan))
    return pd.concat(frames, ignore_index=True)


def attended_places(model: nn.Module, images: ExampleImages) -> pd.DataFrame:
    """Where in each image attention falls, rolled out from the output to the image.

    One row per image and place. Columns: image, row, column, ratio: what falls on the place, over what would if all
    places had the same, keys_side: of the grid of keys in the block where it is coarsest.
    """
    maps = AttentionCapture(model)(images.inputs)
    table = _long(["image", "row", "column"], images.names, ratio=output_by_place(model, maps))
    return table.assign(keys_side=min(each.key_grid_size for each in maps))


def head_statistics(opened: OpenStudy, images: int = 200) -> pd.DataFrame:
    """`capture.attention_statistics` of the runs over evaluation images, stored ones reused; with `labels.labelled`."""
    runs = opened.runs()

    def measure(run: StoredRun) -> pd.DataFrame:
        batches = evaluation_batches(opened, run, images, batch_size=50)
        return attention_statistics(on_best_device(run.model()), (inputs for inputs, _ in batches))

    return labelled(measured(opened, "attention_statistics", _VERSION, {"images": images}, runs, measure), runs)


def _on_examples(
    opened: OpenStudy,
    name: str,
    version: int,
    runs: Sequence[StoredRun],
    examples: Images,
    settings: dict[str, Any],
    measure: Callable[[nn.Module, ExampleImages], pd.DataFrame],
) -> pd.DataFrame:
    """A measurement on example images, stored ones reused while they are of the same pixels."""
    shown = example_images(runs[0], examples)
    settings |= {"images": list(shown.names), "pixels": hashlib.sha256(shown.pixels.tobytes()).hexdigest()}

    def of_run(run: StoredRun) -> pd.DataFrame:
        return measure(on_best_device(run.model()), example_images(run, examples))

    return labelled(measured(opened, name, version, settings, runs, of_run), runs)


def _places(opened: OpenStudy, runs: Sequence[StoredRun], examples: Images) -> pd.DataFrame:
    """`attended_places` of the runs on example images."""
    return _on_examples(opened, "attention_places", _PLACES_VERSION, runs, examples, {}, attended_places)


def _patch_at(place: tuple[float, float], places: pd.DataFrame) -> tuple[float, float, float]:
    """Top, left and side of the patch of the first grid that holds a place, as shares of the image's sides."""
    grid = places["row"].max() + 1
    top, left = (int(share * grid) / grid for share in place)
    return top, left, 1 / grid


def _draw_heads(
    opened: OpenStudy,
    name: str,
    label: str,
    maps: pd.DataFrame,
    images: ExampleImages,
    patch: tuple[float, float, float],
) -> Drawing:
    inputs, said = {"maps": maps, "pictures": _pixels(images)}, findings.of_heads(maps, label)
    return Drawing.of(
        opened, f"attention_heads.{name}", inputs, said, lambda claim: figures.heads(maps, images, patch, claim)
    )


def _long(axes: list[str], images: Sequence[str], **values: Tensor) -> pd.DataFrame:
    """Arrays (images, ...) as a tidy table: a column for each of their axes, and one for each array."""
    shape = next(iter(values.values())).shape
    index = pd.MultiIndex.from_product([images, *(range(size) for size in shape[1:])], names=axes)
    return pd.DataFrame({name: array.flatten().cpu().numpy() for name, array in values.items()}, index).reset_index()


def _pixels(images: ExampleImages) -> pd.DataFrame:
    """Images as a table of numbers, for what a figure is made from."""
    flat = images.pixels.reshape(len(images.names), -1)
    return pd.DataFrame(flat, index=pd.Index(images.names, name="image")).reset_index()


def _shown(opened: OpenStudy) -> list[StoredRun]:
    """The teacher, then the first seed of each other model."""
    teacher = opened.teacher()
    others = [run for run in first_seeds(opened.runs()) if teacher is None or run.id != teacher.id]
    return [teacher, *others] if teacher else others


def _check_place(place: tuple[float, float]) -> None:
    if len(place) != 2 or not all(0 <= share < 1 for share in place):
        raise BinaryViTError(
            f"place={place!r} is not in the image: give (down, right), each from 0 up to, but not including, 1."
        )
