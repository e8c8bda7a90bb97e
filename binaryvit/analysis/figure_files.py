"""Figures as files that say where they come from."""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from binaryvit.analysis.style import style
from binaryvit.errors import BinaryViTError
from binaryvit.files import write_atomically


def save(figure: Figure, path: str | Path, provenance: dict[str, Any]) -> list[Path]:
    """Writes a figure as PDF and PNG beside each other, with its provenance (study, run ids, commits) inside the files.

    `path` is without ending. The same figure and provenance give the same bytes: the files hold no date. Returns the
    two paths; `read_provenance` reads back what was stored.
    """
    note = json.dumps(provenance, sort_keys=True)  # ASCII, as both formats' headers want it
    pdf_header = {"Creator": "binaryvit", "Keywords": note, "CreationDate": None, "ModDate": None}
    pdf, png = (Path(path).with_name(Path(path).name + ending) for ending in (".pdf", ".png"))
    with style():
        write_atomically(pdf, lambda file: figure.savefig(file, format="pdf", metadata=pdf_header))
    write_atomically(png, lambda file: write_png(figure, file, {"Provenance": note}))
    return [pdf, png]


def write_png(figure: Figure, file: IO[bytes], header: Mapping[str, str] | None = None, dpi: int | None = None) -> None:
    """Writes a figure as PNG, an eighth smaller than Matplotlib's: without opacity, and compressed as far as it goes.

    Args:
        figure: what to draw; its background has to be opaque.
        file: where to.
        header: ASCII texts to store in the file, by name.
        dpi: pixels per inch; the style's for files by default.
    """
    drawn = io.BytesIO()
    with style():
        figure.savefig(drawn, format="png", dpi=dpi)
    texts = PngInfo()
    for name, text in {"Software": "binaryvit", **(header or {})}.items():
        texts.add_text(name, text)
    with Image.open(drawn) as image:
        image.convert("RGB").save(file, format="png", optimize=True, dpi=image.info["dpi"], pnginfo=texts)


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
