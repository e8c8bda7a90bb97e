"""Finding files, and writing them so that nobody ever reads half of one."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from binaryvit.errors import BinaryViTError

# The folder that holds this package: the repository, or site-packages.
LIBRARY_PARENT = Path(__file__).resolve().parents[1]


def find_upwards(name: str | Path, start: str | Path) -> Path | None:
    """What is called `name` (a relative path) in the folder `start`, else in the nearest above it; None: nowhere."""
    start = Path(start).resolve()
    return next((folder / name for folder in (start, *start.parents) if (folder / name).exists()), None)


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file next to `path`, then moves it into place in one step.

    Whenever the process dies, `path` holds either its old content or all of the new one. The folder is made if needed.

    Raises:
        BinaryViTError: it cannot be written there.
    """
    with saying_why_not_written(path):
        _write_atomically(Path(path), write)


@contextmanager
def saying_why_not_written(path: str | Path) -> Iterator[None]:
    """Within it, failing to write `path` raises a BinaryViTError that says why."""
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:  # the first is what mkdir says of a file in its way
        raise BinaryViTError(f"{path} cannot be written: a part of its path is a file, not a folder.") from error
    except (OSError, SafetensorError) as error:  # safetensors puts its own name on a full disk
        reason = getattr(error, "strerror", None) or error
        raise BinaryViTError(
            f"{path} cannot be written ({reason}): check its folder and the free space, or choose another place."
        ) from error


def write_text_atomically(path: str | Path, text: str) -> None:
    """Replaces the text file `path` (UTF-8) in one step; raises as `write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # With the permissions of any other new file, not private as tempfile's.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
