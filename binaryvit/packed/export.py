"""From a finished run, or its weights, to a packed file, or to a folder for timm and the Hugging Face hub."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from timm.models._hub import save_config_for_hf

from binaryvit.errors import BinaryViTError
from binaryvit.files import write_atomically, write_text_atomically
from binaryvit.models.description import Description, Preprocessing
from binaryvit.models.weights_file import WeightsFile, model_of, read_weights_file
from binaryvit.packed.file import read_packed, save_packed
from binaryvit.packed.model_card import model_card
from binaryvit.records.run_record import RunRecord, read_record

TIMM_FILES = ("config.json", "model.safetensors", "README.md")


def export_packed(
    source: str | Path, target: str | Path, class_names: str | Path | None = None, overwrite: bool = False
) -> Path:
    """Writes a packed file (see `file`) of a trained model.

    Args:
        source: folder of a finished run, or a weights file.
        target: the file to write.
        class_names: a text file with one name per line, for weights that do not name their classes.
        overwrite: whether to replace `target`.

    Raises:
        BinaryViTError: the source is neither, or has 32-bit weights or activations; the number of names is not that
            of the classes; the target exists, is the source or cannot be written.
    """
    target, found = Path(target), _find(source)
    _check_targets([target], found, overwrite)
    description = _complete(found, class_names)
    save_packed(read_packed(found.file.path).model(), target, description)
    return target


def export_timm(
    run: str | Path, folder: str | Path, class_names: str | Path | None = None, overwrite: bool = False
) -> Path:
    """Writes what timm and the Hugging Face hub expect of a model: config.json, model.safetensors and a model card.

    After `import binaryvit`, `timm.create_model("local-dir:<folder>", pretrained=True)` gives the run's model, its
    binary weights fixed. The weights are the run's own file.

    Args:
        run: folder of a finished run.
        folder: made if needed.
        class_names: a text file with one name per line, for weights that do not name their classes.
        overwrite: whether to replace these three files.

    Raises:
        BinaryViTError: there is no such run; the number of names is not that of the classes; one of the files exists
            or cannot be written.
    """
    folder, found = Path(folder), _find(run)
    if found.record is None:
        raise BinaryViTError(f"{run} is not the folder of a finished run, whose numbers the model card shows.")
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise BinaryViTError(f"{folder} is a file: give the name of a folder to write to.")
    _check_targets([folder / name for name in TIMM_FILES], found, overwrite)
    description, model = _complete(found, class_names), model_of(found.file)
    write_atomically(
        folder / "config.json",
        lambda temporary: save_config_for_hf(
            model,
            temporary,
            model_config={"label_names": description.class_names},
            model_args=description.model_args,
            data_config=description.preprocessing.model_dump(),
        ),
    )
    # As the run stored it: a model of this library loads binary weights from their bits.
    write_atomically(folder / "model.safetensors", lambda temporary: shutil.copyfile(found.file.path, temporary))
    write_text_atomically(folder / "README.md", model_card(found.record, description, model))
    return folder


def find_weights(place: str | Path) -> Path:
    """The weights file `place`, or that of the finished run in the folder `place`.

    Raises:
        BinaryViTError: the folder holds no finished run.
    """
    path = Path(place)
    if not os.path.isdir(path):
        return path
    if (record := read_record(path)) is None:
        raise BinaryViTError(
            f"{path} has no run.json, so it is not a finished run: give a run's folder or a weights file."
        )
    return path / record.weights.file


@dataclass(frozen=True)
class _Source:
    """A weights file, and the record of the run that made it, if there is one next to it."""

    file: WeightsFile
    record: RunRecord | None


def _find(place: str | Path) -> _Source:
    path = find_weights(place)
    record = read_record(path.parent)
    made_it = record is not None and record.weights.file == path.name
    return _Source(read_weights_file(path), record if made_it else None)


def _complete(source: _Source, class_names: str | Path | None) -> Description:
    """A file's description with what files of version 1 do not say, as far as it is known."""
    description, skeleton = source.file.description, source.file.skeleton()
    completed = {}
    if class_names is not None:
        completed["class_names"] = _read_names(Path(class_names), skeleton.num_classes)
    if description.preprocessing is None:
        crop_pct = source.record and source.record.config.get("eval_crop")
        completed["preprocessing"] = Preprocessing.of(skeleton, crop_pct)
    return description.model_copy(update=completed)


def _read_names(path: Path, classes: int) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise BinaryViTError(
            f"The class names in {path} cannot be read: give a text file with one name per line."
        ) from error
    if len(names) != classes:
        raise BinaryViTError(f"{path} names {len(names)} classes, and the model distinguishes {classes}.")
    return names


def _check_targets(paths: list[Path], source: _Source, overwrite: bool) -> None:
    for path in paths:
        if os.path.isdir(path):
            raise BinaryViTError(f"{path} is a folder and is left as it is: give the name of a file to write.")
        if os.path.exists(path) and os.path.samefile(path, source.file.path):
            raise BinaryViTError(f"{path} is what is exported, and is left as it is: choose another name.")
        if os.path.lexists(path) and not overwrite:  # a link to nothing, too, is the user's
            raise BinaryViTError(f"{path} exists and is left as it is: choose another name, or say --overwrite.")
