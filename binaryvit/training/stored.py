"""Evaluates stored weights again, on their own evaluation split or on other data, without writing anything."""

from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from binaryvit.config import DATA_FIELDS, TrainingConfig, without_place
from binaryvit.data.batches import ToDevice, eval_loader, told_of_killed_workers
from binaryvit.data.data_set import load_data
from binaryvit.errors import BinaryViTError
from binaryvit.models.shapes import image_size
from binaryvit.models.weights_file import model_of, read_weights_file
from binaryvit.records.run_record import read_record
from binaryvit.training.build import input_settings
from binaryvit.training.evaluation import Evaluation, evaluate
from binaryvit.training.numerics import chosen_numerics
from binaryvit.training.teacher import check_classes

# The fields of a run's record that its evaluation needs, besides those of its data: how images are cut and dealt. The
# rest says how it was trained.
_IMAGE_FIELDS = ("eval_crop", "batch_size")
# What a configuration needs but no evaluation uses: the model is the stored one.
_UNUSED = {"variant": "deit_micro_patch4_32", "min_learning_rate": 0.0}


def evaluate_stored(place: str | Path, **settings: Any) -> tuple[Evaluation, str]:
    """Evaluates the stored weights of a finished run (its folder) or of a file, in float32 and not compiled.

    Args:
        place: the folder of a finished run, or a weights file of ours.
        settings: fields of TrainingConfig that say which data, and how they are cut and dealt. Of a run's folder they
            replace the run's own, and other `data` all that the run says of its own. A file needs at least `data`, and
            knows how its images are cut.

    Returns:
        The evaluation, and in words which images it is of: their number, split and data set, and whether the data are
        those of the run.

    Raises:
        BinaryViTError: there are no such weights or data, or they have different classes.
    """
    path, record, given, is_own = Path(place), None, settings, False
    if path.is_dir():
        if (record := read_record(path)) is None:
            raise BinaryViTError(f"{place} is not the folder of a finished run: give one, or a weights file.")
        is_own = without_place(settings.get("data", record.config["data"])) == record.config["data"]
        names = (*_IMAGE_FIELDS, *DATA_FIELDS) if is_own else _IMAGE_FIELDS
        own = {name: record.config[name] for name in names if name in record.config}
        if "eval_split" in settings:
            own.pop("holdout_images", None)  # the split that it is held out of is asked for by name
        settings, path = own | settings, path / record.weights.file
    elif "data" not in settings:
        raise BinaryViTError(f"A weights file does not say what to evaluate it on: give the data for {place}.")
    process = PartialState(cpu=not torch.cuda.is_available())
    file = read_weights_file(path)
    model = model_of(file).float().to(process.device)
    preprocessing = file.description.preprocessing
    if record is None and preprocessing:
        settings = {"eval_crop": preprocessing.crop_pct} | settings
    config = TrainingConfig(**_UNUSED | settings)
    # Without a split to train on the fingerprint is another one, which only the run's own images need.
    data = load_data(config, to_train=is_own and "eval_split" not in given)
    check_classes(str(place), model.num_classes, file.description.class_names, data.class_names)
    (_, mean, std), size = input_settings(model), (3, *image_size(model))
    if preprocessing:
        mean, std = preprocessing.mean, preprocessing.std
    loader = eval_loader(data, config, size, process.process_index, process.num_processes)
    with told_of_killed_workers(), chosen_numerics():
        result = evaluate(model, map(ToDevice(mean, std, process.device), loader.epoch()), process.device)
    loader.close()
    name, images = data.splits["eval"]
    images_of = f"{images} images of split '{name}' of"
    if record is None:
        return result, f"{images_of} {data.label}"
    if data.fingerprint == record.data.fingerprint:
        return result, f"{images_of} {data.label}, the run's own data"
    # What a run calls its data may be untrue of those in another folder.
    label = data.name if "data_dir" in given and "data_label" not in given else data.label
    return result, f"{images_of} {label}, not the run's own data"
