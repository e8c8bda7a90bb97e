"""What the models of a study attend to: rolled out to the image, head by head, and what binarization makes of it.

Statistics are over evaluation images; pictures show images that may be shared, or your own.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from binaryvit.analysis.attention import figures, findings
from binaryvit.analysis.attention.capture import AttentionCapture, AttentionMaps, attention_statistics
from binaryvit.analysis.attention.rollout import pooling_weights, rollout, to_pixels
from binaryvit.analysis.device import on_best_device
from binaryvit.analysis.images import ExampleImages, Images, evaluation_batches, example_images, images_for
from binaryvit.analysis.labels import labelled, model_label
from binaryvit.analysis.levels import initial_levels, is_off
from binaryvit.analysis.measurements import measured
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy, StoredRun
from binaryvit.errors import BinaryViTError
from binaryvit.training.build import image_size, input_settings

_VERSION = 2  # of the measuring code in this file
_ROLLOUT = "rollout"


def drawings(
    opened: OpenStudy, images: int = 200, examples: Images = 2, place: tuple[float, float] = (0.5, 0.5)
) -> list[Drawing]:
    """All figures on attention; the parameters are those of the functions that make them."""
    made = [side_by_side(opened, examples), *heads(opened, examples, place), density(opened, images)]
    made += [threshold(opened, images), evenness(opened, images), by_depth(opened, examples)]
    return [drawing for drawing in made if drawing]


def side_by_side(opened: OpenStudy, examples: Images = 2) -> Drawing:
    """Attention rolled out from the output to the image, all models next to each other.

    Args:
        opened: whose runs. Of several seeds the first is shown.
        examples: the images of the picture, see `images.example_images`.

    Raises BinaryViTError when a selection is wrong or empty, or a run's model has no attention.
    """
    teacher = opened.teacher()
    places = _places(opened, examples)
    places = places[places["map"] == _ROLLOUT].reset_index(drop=True)
    said = findings.of_rollouts(places, teacher and model_label(teacher))
    return _draw_places(opened, "attention_side_by_side", places, examples, said)


def by_depth(opened: OpenStudy, examples: Images = 2) -> Drawing:
    """Where attention falls in the first and the last block, all models next to each other; see `side_by_side`."""
    places = _places(opened, examples)
    places = places[places["map"] != _ROLLOUT].reset_index(drop=True)
    return _draw_places(opened, "attention_by_depth", places, examples, findings.of_depths(places))


def heads(opened: OpenStudy, examples: Images = 2, place: tuple[float, float] = (0.5, 0.5)) -> list[Drawing]:
    """What a patch attends to in every head: a figure for each model, the teacher's first.

    Args:
        opened, examples: see `side_by_side`.
        place: of the patch, (down, right), shares in [0, 1) of the sides of an image.

    Raises BinaryViTError when a selection is wrong or empty, a run's model has no attention, or the place is outside.
    """
    _check_place(place)
    shown = _shown(opened)
    maps = _measured_examples(
        opened, "attention_maps", shown, examples, {"place": list(place)},
        lambda model, images: attended_by(model, images, place),
    )  # fmt: skip
    images = example_images(shown[0], examples)
    return [
        _draw_heads(opened, run.id, model_label(run), maps[maps["run"] == run.id], images, place, (run.id,))
        for run in shown
    ]


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
    return _draw_heads(opened, label, label, attended_by(model, images, place), images, place, ())


def density(opened: OpenStudy, images: int = 200) -> Drawing | None:
    """How many keys each head attends to, and where its threshold lies; None where no run has binary attention.

    Args:
        opened: whose runs.
        images: how many evaluation images the statistics are over.

    Raises BinaryViTError when a selection is wrong or empty, or what is not measured yet needs data that are not at
    hand.
    """
    binary = head_statistics(opened, images).dropna(subset="level")
    if binary.empty:
        return None
    started = {run.id: initial_levels(run.model()) for run in opened.runs()}
    initial = [started[run][layer] for run, layer in zip(binary["run"], binary["layer"], strict=True)]
    binary = binary.assign(
        threshold=binary["level"] * binary["keys"] / 2, initial_threshold=initial * binary["keys"] / 2
    )
    quantities = {"density": "attended keys", "threshold": "threshold a / 2\n× number of keys"}
    said, before = findings.of_density(binary), {"threshold": "initial_threshold"}
    return _draw_blocks(
        opened, "attention_density", binary, quantities, said, logarithmic={"threshold"}, initial=before
    )


def evenness(opened: OpenStudy, images: int = 200) -> Drawing:
    """How even attention is before its binarization; see `density`."""
    statistics, teacher = head_statistics(opened, images), opened.teacher()
    said = findings.of_evenness(statistics, teacher and model_label(teacher))
    return _draw_blocks(opened, "attention_evenness", statistics, {"evenness": "entropy / ln(keys)"}, said)


def threshold(opened: OpenStudy, images: int = 200) -> Drawing | None:
    """What the threshold takes from the probabilities; see `density`."""
    binary = head_statistics(opened, images).dropna(subset="level")
    if binary.empty:
        return None
    quantities = {"removed": "probability removed"}
    return _draw_blocks(opened, "attention_threshold", binary, quantities, findings.of_threshold(binary))


def attended_by(model: nn.Module, images: ExampleImages, place: tuple[float, float]) -> pd.DataFrame:
    """What the patch at a place of each image attends to.

    One row per image, block, head and place of the keys' grid. Columns: image, block, head, row, column, ratio
    (probability times number of keys), attended (1 where it is a after binarization, else 0; NaN where the attention is
    not binary), off (whether the block's attention is off). Keys without a place in the image (a CLS token) are left
    out.
    """
    frames = []
    for block, each in enumerate(AttentionCapture(model)(images.inputs)):
        query = each.query_at(place)
        ratio = each.on_key_grid(each.probabilities[:, :, query]) * each.probabilities.shape[-1]
        attended = (each.on_key_grid(each.used[:, :, query]) > 0).float()
        frame = _long(["image", "head", "row", "column"], images.names, ratio=ratio, attended=attended)
        frame.insert(1, "block", block)
        frame["off"] = each.off
        frames.append(frame if each.level is not None else frame.assign(attended=np.nan))
    return pd.concat(frames, ignore_index=True)


def attended_places(model: nn.Module, images: ExampleImages) -> pd.DataFrame:
    """Where in each image attention falls: in the first and the last block, and rolled out from output to image.

    One row per image, map and place. Columns: image, map, row, column, ratio: what falls on the place, over what would
    if all places had the same; NaN where nothing is attended. For a block it is the mean over its heads and queries of
    the attention it uses.
    """
    maps = AttentionCapture(model)(images.inputs)
    first = maps[0]
    rows = rollout(maps, pooling_weights(model, maps[-1]))[:, 0]
    kinds = {
        "first block": _received(first),
        "last block": _received(maps[-1]),
        _ROLLOUT: to_pixels(rows, first.prefix_tokens, first.grid_size, (first.grid_size,) * 2),
    }
    frames = []
    for name, shares in kinds.items():
        total = shares.sum((-2, -1), keepdim=True)
        frame = _long(["image", "row", "column"], images.names, ratio=shares / total * shares[0].numel())
        frame.insert(1, "map", name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def head_statistics(opened: OpenStudy, images: int = 200) -> pd.DataFrame:
    """`capture.attention_statistics` of the runs over evaluation images, stored ones reused; with `labels.labelled`."""
    runs = opened.runs()

    def measure(run: StoredRun) -> pd.DataFrame:
        batches = evaluation_batches(opened, run, images, batch_size=50)
        return attention_statistics(on_best_device(run.model()), (inputs for inputs, _ in batches))

    return labelled(measured(opened, "attention_statistics", _VERSION, {"images": images}, runs, measure), runs)


def levels(statistics: pd.DataFrame) -> pd.DataFrame:
    """The learned a of each binary model and seed as text, one column per block, from `head_statistics`."""
    binary = statistics.dropna(subset="level")
    table = binary.pivot_table(index=["label", "seed"], columns="block", values="level", sort=False).add_prefix(
        "block "
    )
    return table.map(lambda level: "off" if is_off(level) else f"{level:.3g}", na_action="ignore")


def _places(opened: OpenStudy, examples: Images) -> pd.DataFrame:
    """`attended_places` of every model that is shown."""
    return _measured_examples(opened, "attention_places", _shown(opened), examples, {}, attended_places)


def _measured_examples(
    opened: OpenStudy, name: str, runs: Sequence[StoredRun], examples: Images, settings: dict[str, Any], measure: Any
) -> pd.DataFrame:
    """A measurement on example images, stored ones reused while they are of the same pixels."""
    shown = example_images(runs[0], examples)
    settings |= {"images": list(shown.names), "pixels": hashlib.sha256(shown.pixels.tobytes()).hexdigest()}
    table = measured(
        opened,
        name,
        _VERSION,
        settings,
        runs,
        lambda run: measure(on_best_device(run.model()), example_images(run, examples)),
    )
    return labelled(table, runs)


def _draw_places(
    opened: OpenStudy, name: str, places: pd.DataFrame, examples: Images, said: tuple[str, str]
) -> Drawing:
    images, (claim, finding) = example_images(_shown(opened)[0], examples), said
    return Drawing(
        opened,
        name,
        {"places": places, "pictures": _pixels(images)},
        lambda: figures.side_by_side(places, _pictures(images), images.credit, claim),
        tuple(places["run"].unique()),
        finding,
    )


def _draw_heads(
    opened: OpenStudy,
    name: str,
    label: str,
    maps: pd.DataFrame,
    images: ExampleImages,
    place: tuple[float, float],
    runs: tuple[str, ...],
) -> Drawing:
    claim, finding = findings.of_heads(maps, label)
    return Drawing(
        opened,
        f"attention_heads.{name}",
        {"maps": maps, "pictures": _pixels(images)},
        lambda: figures.heads(maps, _pictures(images), images.credit, place, claim),
        runs,
        finding,
    )


def _draw_blocks(
    opened: OpenStudy,
    name: str,
    statistics: pd.DataFrame,
    quantities: Mapping[str, str],
    said: tuple[str, str],
    **axes: Any,
) -> Drawing:
    claim, finding = said
    return Drawing(
        opened,
        name,
        {"statistics": statistics},
        lambda: figures.by_block(statistics, quantities, claim, **axes),
        tuple(statistics["run"].unique()),
        finding,
    )


def _received(maps: AttentionMaps) -> Tensor:
    """(images, row, column): what each key gets, in the mean over heads and queries."""
    return maps.on_key_grid(maps.used.double().mean(dim=(1, 2)))


def _long(axes: list[str], images: Sequence[str], **values: Tensor) -> pd.DataFrame:
    """Arrays (images, ...) as a tidy table: a column for each of their axes, and one for each array."""
    shape = next(iter(values.values())).shape
    index = pd.MultiIndex.from_product([images, *(range(size) for size in shape[1:])], names=axes)
    return pd.DataFrame({name: array.flatten().cpu().numpy() for name, array in values.items()}, index).reset_index()


def _pictures(images: ExampleImages) -> dict[str, np.ndarray]:
    return dict(zip(images.names, images.pixels, strict=True))


def _pixels(images: ExampleImages) -> pd.DataFrame:
    """Images as a table of numbers, for what a figure is made from."""
    flat = images.pixels.reshape(len(images.names), -1)
    return pd.DataFrame(flat, index=pd.Index(images.names, name="image")).reset_index()


def _shown(opened: OpenStudy) -> list[StoredRun]:
    """The teacher, then the first seed of each other model."""
    teacher = opened.teacher()
    first = {model_label(run): run for run in reversed(opened.runs())}
    others = [run for run in reversed(first.values()) if teacher is None or run.id != teacher.id]
    return [teacher, *others] if teacher else others


def _check_place(place: tuple[float, float]) -> None:
    if len(place) != 2 or not all(0 <= share < 1 for share in place):
        raise BinaryViTError(
            f"place={place!r} is not in the image: give (down, right), each from 0 up to, but not including, 1."
        )
