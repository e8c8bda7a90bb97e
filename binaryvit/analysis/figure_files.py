"""Figures as files that say where they come from."""

import json
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from binaryvit.analysis.style import style
from binaryvit.errors import BinaryViTError
from binaryvit.files import write_atomically


def save(figure: Figure, path: str | Path, provenance: dict[str, Any]) -> list[Path]:
    """Writes a figure as PDF and PNG beside each other, with its provenance (study, run ids, commits) inside the files.

    `path` is without ending. The same figure and provenance give the same bytes: the files hold no date. Returns the
    two paths; `read_provenance` reads back what was stored.
    """
    note = json.dumps(provenance, sort_keys=True)  # ASCII, as both formats' headers want it
    headers = {
        ".pdf": {"Creator": "binaryvit", "Keywords": note, "CreationDate": None, "ModDate": None},
        ".png": {"Software": "binaryvit", "Provenance": note},
    }
    paths = []
    with style():
        for ending, metadata in headers.items():
            target = Path(path).with_name(Path(path).name + ending)
            write_atomically(target, lambda file, e=ending, m=metadata: figure.savefig(file, format=e[1:], metadata=m))
            paths.append(target)
    return paths


def read_provenance(path: str | Path) -> dict[str, Any]:
    """What `save` stored in a PDF or PNG. Raises BinaryViTError when the file is none of ours or cannot be read."""
    path = Path(path)
    try:
        if path.suffix == ".png":
            with Image.open(path) as image:
                note = image.info["Provenance"]
        else:
            keywords = re.search(rb"/Keywords \((.*?)(?<!\\)\)", path.read_bytes(), re.DOTALL)
            note = re.sub(rb"\\(.)", rb"\1", keywords[1]).decode("ascii")
        return json.loads(note)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BinaryViTError(f"{path} holds no provenance: it is missing, damaged, or not a figure of ours.") from error
