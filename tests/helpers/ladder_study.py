"""A study of the whole ladder with hand-made records and predictions, for tests of what is made from its accuracies."""

from pathlib import Path
from typing import Any

import numpy as np
from helpers.records import record_of

from binaryvit.models.ladder import LADDER
from binaryvit.records.predictions import write_predictions
from binaryvit.records.run_record import RunResult
from binaryvit.studies.study import Study, load_study

MICRO = LADDER["micro"]
TOP1 = dict(zip(MICRO, (79.0, 46.0, 49.0, 52.5, 52.25, 61.0, 63.0), strict=True))
IMAGES = 400


def write_study(folder: Path, names=MICRO, seeds=(0,), **entries: Any) -> Study:
    """Writes a study of the ladder `names` (teacher first) and returns it resolved."""
    lines = {"name": "tiny", "title": "A tiny study", "recipe": "{epochs: 6}", **entries}
    lines |= {"teacher": f"{{variant: {names[0]}}}", "variants": list(names[1:]), "seeds": list(seeds)}
    text = "\n".join(f"{name}: {value}" for name, value in lines.items())
    (folder / "study.yaml").write_text(text.replace("'", ""))
    return load_study(folder)


def finish(study: Study, top1=TOP1, skip=(), **changes: Any) -> None:
    """Writes record and predictions of every run but those of the variants in `skip`; each seed adds a point of top-1.

    The first images are classified right: of two models, the better one is right wherever the other is.
    """
    for run in study.runs:
        if run.config.variant not in skip:
            accuracy = top1[run.config.variant] + run.config.seed
            result = RunResult(top1=accuracy, top5=99.0, eval_loss=1.0, epochs=run.config.epochs, images_per_second=1.0)
            data = record_of(study, run).data.model_copy(update={"eval_images": IMAGES})
            run.folder.mkdir(parents=True, exist_ok=True)
            is_wrong = np.arange(IMAGES) >= IMAGES / 100 * accuracy
            fields = {"result": result, "data": data}
            fields["predictions"] = write_predictions(run.folder, is_wrong, np.zeros(IMAGES))
            record_of(study, run, **fields | changes).write(run.folder)
