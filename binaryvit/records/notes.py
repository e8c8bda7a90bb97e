"""Notes next to derived files that tell whether they are current, stale or edited."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from binaryvit.errors import BinaryViTError
from binaryvit.files import write_text_atomically

_DIGITS = "%.6g"  # what tables of numbers are stored and compared with


class Note(BaseModel):
    """What derived files were made from (`source`), and the sha256 of each as it was written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: dict[str, Any]
    files: dict[str, str]

    @classmethod
    def of(cls, source: Mapping[str, Any], paths: Iterable[Path]) -> "Note":
        """The note on files as they are now."""
        return cls(source=dict(source), files={path.name: sha256_of(path) for path in paths})

    @classmethod
    def read(cls, path: str | Path) -> "Note | None":
        """The note in the file `path`; None if there is none. Raises BinaryViTError if it is something else."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise BinaryViTError(
                f"{path} is not a note on where files come from: remove it, and make the files next to it again."
            ) from error

    def write(self, path: str | Path) -> None:
        """Writes the note, atomically."""
        write_text_atomically(path, self.model_dump_json(indent=2) + "\n")


def sha256_of(path: str | Path) -> str:
    """sha256 (hexadecimal) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def csv_of(frame: pd.DataFrame) -> str:
    """A table as CSV with six significant digits, which is more than any figure shows."""
    return frame.to_csv(index=False, float_format=_DIGITS, lineterminator="\n")


def sha256_of_text(text: str) -> str:
    """sha256 (hexadecimal) of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
