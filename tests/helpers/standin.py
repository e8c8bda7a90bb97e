"""A training notebook that trains nothing: it waits if told to, and leaves a prepared record."""

import nbformat
from helpers.records import record_of

from binaryvit.data.data_set import load_data

_PARAMETERS = """
variant = None
settings = {}
output = None
study = None
run_id = None
"""

_CODE = """
import pathlib, shutil, time
run = pathlib.Path(output)
run.mkdir(parents=True, exist_ok=True)
with open("executed.txt", "a") as log:
    log.write(run_id + "\\n")
try:
    (run / "begun").touch()
    while pathlib.Path(f"wait-{run_id}").exists():
        time.sleep(0.05)
except KeyboardInterrupt:
    (run / "checkpoint").write_text("saved on the way out")
    raise
shutil.copy(f"records/{run_id}.json", run / "run.json")
"""


def prepare(folder, load_study, text):
    """A study in `folder` whose notebook is the stand-in, with a record for each run; returns it loaded."""
    cells = [
        nbformat.v4.new_code_cell(_PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(_CODE),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (folder / "notebooks").mkdir()
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), folder / "notebooks" / "train.ipynb"
    )
    (folder / "study.yaml").write_text(text)
    (folder / "records").mkdir()
    study = load_study(folder)
    fingerprint = load_data(study.data_config).fingerprint
    for run in study.runs:
        (folder / "records" / f"{run.id}.json").write_text(record_of(study, run, fingerprint).model_dump_json())
    return study
