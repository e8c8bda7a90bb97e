"""What the models of a study attend to: each beside its teacher, all side by side, and what binarization makes of it.

Statistics are over evaluation images; pictures show images that may be shared, or one's own.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from binaryvit.analysis.attention import figures, findings
from binaryvit.analysis.attention.capture import AttentionCapture, AttentionMaps, attention_statistics
from binaryvit.analysis.attention.rollout import pooling_weights, rollout, to_pixels
from binaryvit.analysis.images import ExampleImages, Images, evaluation_batches, example_images, images_for
from binaryvit.analysis.measurements import measured
from binaryvit.analysis.product import Drawing
from binaryvit.analysis.stored import OpenStudy, StoredRun
from binaryvit.errors import BinaryViTError
from binaryvit.models.quantizers import MINIMUM_ATTENTION_LEVEL
from binaryvit.training.build import image_size, input_settings

_VERSION = 1  # of the measuring code in this file


def drawings(
    opened: OpenStudy, images: int = 200, examples: Images = 2, place: tuple[float, float] = (0.5, 0.5)
) -> list[Drawing]:
    """All figures on attention; the parameters are those of the functions that make them."""
    made = [side_by_side(opened, examples), *heads(opened, examples, place)]
    return [drawing for drawing in (*made, density(opened, images), threshold(opened, images)) if drawing]


def side_by_side(opened: OpenStudy, examples: Images = 2) -> Drawing:
    """Where attention falls in the first and the last block and rolled out, all models next to each other.

    Args:
        opened: whose runs. Of several seeds the first is shown.
        examples: the images of the picture, see `images.example_images`.

    Raises BinaryViTError when a selection is wrong or empty, or a run's model has no attention.
    """
    teacher, shown = opened.teacher(), _shown(opened)
    places = _measured_examples(opened, "attention_places", shown, examples, {}, attended_places)
    images = example_images(shown[0], examples)
    pictures = _pictures(images)
    return Drawing(
        opened,
        "attention_side_by_side",
        {"places": places, "pictures": _pixels(images)},
        lambda: figures.side_by_side(places, pictures),
        tuple(run.id for run in shown),
        f"{findings.of_places(places, teacher and _model_label(teacher))} {findings.of_images(images.credit)}",
    )


def heads(opened: OpenStudy, examples: Images = 2, place: tuple[float, float] = (0.5, 0.5)) -> list[Drawing]:
    """What a patch attends to in every head: a figure for each binary model, with its teacher.

    Args:
        opened, examples: see `side_by_side`.
        place: of the patch, (down, right), shares in [0, 1) of the sides of an image.

    Raises BinaryViTError when a selection is wrong or empty, a run's model has no attention, or the place is outside.
    """
    _check_place(place)
    teacher, shown = opened.teacher(), _shown(opened)
    settings = {"place": list(place)}
    maps = _measured_examples(
        opened, "attention_maps", shown, examples, settings, lambda model, images: attended_by(model, images, place)
    )
    images = example_images(shown[0], examples)
    drawn = []
    for run in _first_seeds(opened.runs()):
        if run.is_binary:
            ids = tuple(each.id for each in (teacher, run) if each is not None)
            name = f"attention_heads.{run.id}"
            drawn.append(_heads_drawing(opened, maps[maps["run"].isin(ids)], images, place, name, ids))
    return drawn


def heads_of_model(
    opened: OpenStudy, model: nn.Module, label: str, examples: Images = 2, place: tuple[float, float] = (0.5, 0.5)
) -> Drawing:
    """Any model's attention by head, beside that of the study's teacher, on the study's example images.

    The model may be one of timm's, with its own size of images, and need not be binary. Raises BinaryViTError when it
    has no attention over patches of the image.
    """
    _check_place(place)
    teacher = opened.teacher()
    reference = teacher or opened.runs()[0]
    settings = input_settings(model)
    images = images_for(reference.config, ((3, *image_size(model)), *settings[1:]), examples)
    maps = attended_by(model, images, place).assign(label=label)
    if teacher is not None:
        of_teacher = attended_by(teacher.model(), example_images(teacher, examples), place)
        maps = pd.concat([of_teacher.assign(label=teacher.label), maps], ignore_index=True)
    ids = () if teacher is None else (teacher.id,)
    return _heads_drawing(opened, maps, images, place, f"attention_heads.{label}", ids)


def density(opened: OpenStudy, images: int = 200) -> Drawing | None:
    """How many keys each head attends to, and where its threshold lies; None where no run has binary attention.

    Args:
        opened: whose runs.
        images: how many evaluation images the statistics are over.

    Raises BinaryViTError when a selection is wrong or empty, or what is not measured yet needs data that are not at
    hand.
    """
    binary = head_statistics(opened, images).dropna(subset="level").copy()
    if binary.empty:
        return None
    binary["threshold"] = binary["level"] * binary["keys"] / 2
    quantities = {"density": "density of {0, a}\n(share of a)", "threshold": "threshold a / 2\n× number of keys"}
    return Drawing(
        opened,
        "attention_density",
        {"statistics": binary},
        lambda: figures.by_block(binary, quantities, logarithmic={"threshold"}),
        tuple(binary["run"].unique()),
        findings.of_density(binary),
    )


def threshold(opened: OpenStudy, images: int = 200) -> Drawing:
    """How even attention is before binarization, and what the threshold takes from it; see `density`."""
    statistics = head_statistics(opened, images)
    quantities = {
        "evenness": "entropy before\n/ ln(keys)",
        "removed": "probability\nremoved",
        "empty": "rows that\nbecome all 0",
    }
    return Drawing(
        opened,
        "attention_threshold",
        {"statistics": statistics},
        lambda: figures.by_block(statistics, quantities),
        tuple(statistics["run"].unique()),
        findings.of_threshold(statistics),
    )


def attended_by(model: nn.Module, images: ExampleImages, place: tuple[float, float]) -> pd.DataFrame:
    """What the patch at a place of each image attends to.

    One row an image, block, head and place of the keys' grid. Columns: image, block, head, row, column, ratio
    (probability times number of keys), attended (1 where it is a after binarization, else 0; NaN where the attention is
    not binary). Keys without a place in the image (a CLS token) are left out.
    """
    frames = []
    for block, each in enumerate(AttentionCapture(model)(images.inputs)):
        query = each.query_at(place)
        ratio = each.on_key_grid(each.probabilities[:, :, query]) * each.probabilities.shape[-1]
        attended = (each.on_key_grid(each.used[:, :, query]) > 0).float()
        frame = _long(["image", "head", "row", "column"], images.names, ratio=ratio, attended=attended)
        frame.insert(1, "block", block)
        frames.append(frame if each.level is not None else frame.assign(attended=np.nan))
    return pd.concat(frames, ignore_index=True)


def attended_places(model: nn.Module, images: ExampleImages) -> pd.DataFrame:
    """Where in each image attention falls: in the first and the last block, and rolled out from output to image.

    One row an image, map and place. Columns: image, map, row, column, ratio: what falls on the place, over what would
    if all places had the same. For a block it is the mean over its heads and queries of the attention it uses.
    """
    maps = AttentionCapture(model)(images.inputs)
    first = maps[0]
    rows = rollout(maps, pooling_weights(model, maps[-1]))[:, 0]
    kinds = {
        "attended in the first block": _received(first),
        "attended in the last block": _received(maps[-1]),
        "rollout": to_pixels(rows, first.prefix_tokens, first.grid_size, (first.grid_size,) * 2),
    }
    frames = []
    for name, shares in kinds.items():
        total = shares.sum((-2, -1), keepdim=True)
        ratio = (shares / total * shares[0].numel()).nan_to_num(0)  # where nothing at all is attended
        frame = _long(["image", "row", "column"], images.names, ratio=ratio)
        frame.insert(1, "map", name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def head_statistics(opened: OpenStudy, images: int = 200) -> pd.DataFrame:
    """`capture.attention_statistics` of the runs over evaluation images, stored ones reused.

    Before its columns stand run, label (the model's, without seed), variant and seed.
    """
    runs = opened.runs()

    def measure(run: StoredRun) -> pd.DataFrame:
        batches = evaluation_batches(opened, run, images, batch_size=50)
        return attention_statistics(run.model(), (inputs for inputs, _ in batches))

    frame = measured(opened, "attention_statistics", _VERSION, {"images": images}, runs, measure)
    by_id = {run.id: run for run in runs}
    frame.insert(1, "label", frame["run"].map({name: _model_label(run) for name, run in by_id.items()}))
    frame.insert(2, "variant", frame["run"].map({name: run.variant for name, run in by_id.items()}))
    frame.insert(3, "seed", frame["run"].map({name: run.record.seed for name, run in by_id.items()}))
    return frame


def levels(statistics: pd.DataFrame) -> pd.DataFrame:
    """The learned a of each binary model and seed as text, a column a block, from `head_statistics`."""
    binary = statistics.dropna(subset="level")
    table = binary.pivot_table(index=["label", "seed"], columns="block", values="level", sort=False).add_prefix(
        "block "
    )
    return table.map(
        lambda level: "0 or below" if level <= MINIMUM_ATTENTION_LEVEL else f"{level:.3g}", na_action="ignore"
    )


def _measured_examples(
    opened: OpenStudy, name: str, runs: Sequence[StoredRun], examples: Images, settings: dict[str, Any], measure: Any
) -> pd.DataFrame:
    """A measurement on example images, stored ones reused while they are of the same pixels."""
    shown = example_images(runs[0], examples)
    settings |= {"images": list(shown.names), "pixels": hashlib.sha256(shown.pixels.tobytes()).hexdigest()}
    frame = measured(
        opened, name, _VERSION, settings, runs, lambda run: measure(run.model(), example_images(run, examples))
    )
    frame.insert(1, "label", frame["run"].map({run.id: _model_label(run) for run in runs}))
    return frame


def _heads_drawing(
    opened: OpenStudy,
    maps: pd.DataFrame,
    images: ExampleImages,
    place: tuple[float, float],
    name: str,
    ids: tuple[str, ...],
) -> Drawing:
    pictures = _pictures(images)
    return Drawing(
        opened,
        name,
        {"maps": maps, "pictures": _pixels(images)},
        lambda: figures.heads(maps, pictures, place),
        ids,
        f"{findings.of_heads(maps)} {findings.of_images(images.credit)}",
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
    teacher, first = opened.teacher(), _first_seeds(opened.runs())
    return [teacher, *(run for run in first if run.id != teacher.id)] if teacher else first


def _first_seeds(runs: Sequence[StoredRun]) -> list[StoredRun]:
    return list({_model_label(run): run for run in reversed(runs)}.values())[::-1]


def _model_label(run: StoredRun) -> str:
    """What its model is called, whatever the seed."""
    return run.label.removesuffix(f", seed {run.record.seed}")


def _check_place(place: tuple[float, float]) -> None:
    if len(place) != 2 or not all(0 <= share < 1 for share in place):
        raise BinaryViTError(
            f"place={place!r} is not in the image: give (down, right), each from 0 up to, but not including, 1."
        )
