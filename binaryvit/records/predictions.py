"""What a run's stored weights predict for each evaluation image, to compare runs image by image."""

from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from binaryvit.errors import BinaryViTError
from binaryvit.files import write_atomically
from binaryvit.records.notes import sha256_of
from binaryvit.records.run_record import PredictionsRecord, read_record

PREDICTIONS_FILE = "predictions.safetensors"


def write_predictions(run_dir: str | Path, predicted: np.ndarray, labels: np.ndarray) -> PredictionsRecord:
    """Stores the predicted class and the label of each image, both (images,), in the order of the split.

    Two bytes per image with up to 256 classes, four with more.
    """
    path = Path(run_dir) / PREDICTIONS_FILE
    smallest = np.uint8 if max(predicted.max(), labels.max()) < 256 else np.uint16
    tensors = {"predicted": predicted.astype(smallest), "label": labels.astype(smallest)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary))
    return PredictionsRecord(file=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))


def read_predictions(run_dir: str | Path) -> pd.DataFrame:
    """The predictions of a finished run: columns predicted and label (class indices), one row per evaluated image.

    Runs on the same data (equal fingerprints) have the same images in the same order.

    Raises BinaryViTError when the run is not finished, stored none, or the file is not the one its record names.
    """
    record = read_record(run_dir)
    if record is None or record.predictions is None:
        raise BinaryViTError(f"{run_dir} holds no predictions of a finished run: train it with this version.")
    path = Path(run_dir) / PREDICTIONS_FILE
    try:
        # Two numbers of at most two bytes per image, and a header.
        if record.predictions.file != path.name or path.stat().st_size > 4 * record.data.eval_images + 1000:
            raise ValueError("it is not what a run writes")
        content = path.read_bytes()
        if sha256_of(path) != record.predictions.sha256:
            raise ValueError("it was changed after the run")
        frame = pd.DataFrame(load(content))[["predicted", "label"]]
        if len(frame) != record.data.eval_images:
            raise ValueError(f"it holds {len(frame)} images, the run was evaluated on {record.data.eval_images}")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise BinaryViTError(f"The predictions {path} cannot be used: {error}.") from error
    return frame.astype(int)
