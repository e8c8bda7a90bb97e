"""Reads weights files that are damaged or forged, in a process whose memory is bounded.

Usage: python fuzzed_files.py COUNT SEED FILE... COUNT variations of the files are read, one after the other, and what
is read is run. Prints JSON: how many were refused and how many opened, and for each kind of variation a sentence.
Anything but a `BinaryViTError` ends the process with a traceback.
"""

import json
import random
import re
import resource
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

import binaryvit  # noqa: F401 - registers the models
from binaryvit.errors import BinaryViTError
from binaryvit.packed.engine import PackedModel
from binaryvit.packed.file import read_packed

ALLOWED_BYTES = 256 * 2**20  # beyond what the process holds after it read the intact file
NUMBERS = (-1, 0, 1, 7, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 10**30)


def split(data: bytes) -> tuple[bytes, bytes]:
    """Header (JSON) and tensors of a safetensors file."""
    [length] = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length], data[8 + length :]


def joined(header: bytes, tensors: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + tensors


def flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 3, 30))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def flipped_header(data: bytes, chance: random.Random) -> bytes:
    header, tensors = split(data)
    return joined(flipped(header, chance), tensors)


def another_number(data: bytes, chance: random.Random) -> bytes:
    """One of the header's numbers is another: a shape, an offset, a size in the description."""
    header, tensors = split(data)
    found = chance.choice(list(re.finditer(rb"-?\d+(\.\d+)?", header)))
    number = str(chance.choice((*NUMBERS, 0.5, 1e308, int(found[0]) + 1 if found[0].isdigit() else 3))).encode()
    return joined(header[: found.start()] + number + header[found.end() :], tensors)


def another_description(data: bytes, chance: random.Random) -> bytes:
    """A description that is valid JSON and whose values are not what they should be."""
    header, tensors = split(data)
    content = json.loads(header)
    [(key, text)] = content["__metadata__"].items()
    described = json.loads(text)
    values = [None, True, "deit_base_patch16_224", "x" * 5000, [], {}, [[[[1]]]], *NUMBERS, [10**9] * 4, [3, 4, 8, 40]]
    place = chance.choice((described, described["model_args"], described["preprocessing"]))
    name = chance.choice([*place, "depths", "embed_dims", "img_size", "features_only", "pretrained"])
    place[name] = chance.choice(values)
    content["__metadata__"][key] = json.dumps(described)
    return joined(json.dumps(content).encode(), tensors)


def another_tensor(data: bytes, chance: random.Random) -> bytes:
    """A tensor of another name, type or shape, none, or the place of another one."""
    header, tensors = split(data)
    content = json.loads(header)
    names = [name for name in content if name != "__metadata__"]
    name, other = chance.sample(names, 2)
    change = chance.randrange(5)
    if change == 0:
        del content[name]
    elif change == 1:
        content["more"] = content.pop(name)
    elif change == 2:
        content[name]["dtype"] = chance.choice(("U8", "F16", "F32", "F64", "I64", "BOOL", "BF16", "F4", "none"))
    elif change == 3:
        content[name]["shape"] = chance.choice(([], [1], [-1], [2**40, 2**40], content[other]["shape"]))
    else:
        content[name]["data_offsets"] = content[other]["data_offsets"]
    return joined(json.dumps(content).encode(), tensors)


def cut(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def longer(data: bytes, chance: random.Random) -> bytes:
    return data + chance.randbytes(chance.choice((1, 8, 4096)))


def another_length(data: bytes, chance: random.Random) -> bytes:
    return struct.pack("<Q", abs(chance.choice(NUMBERS)) % 2**64) + data[8:]


def shuffled(data: bytes, chance: random.Random) -> bytes:
    """A piece of the file twice, or in another place."""
    start, end = sorted(chance.sample(range(len(data)), 2))
    at = chance.randrange(len(data))
    return data[:at] + data[start:end] + data[at + chance.choice((0, end - start)) :]


def noise(data: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 7, 8, 9, 100, len(data))))


VARIATIONS = (
    flipped, flipped_header, another_number, another_description, another_tensor, cut, longer, another_length, shuffled,
    noise,
)  # fmt: skip


def run(path: Path) -> None:
    """Reads a file, builds its model and its packed model, and gives each an image."""
    file = read_packed(path)
    model, packed = file.model(), PackedModel(file.skeleton, file.tensors, threads=1)
    for each in (model, packed):
        each(torch.zeros(1, model.in_chans, model.img_size, model.img_size))


def main() -> None:
    count, chance = int(sys.argv[1]), random.Random(int(sys.argv[2]))
    originals = [Path(file).read_bytes() for file in sys.argv[3:]]
    outcomes: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for file in sys.argv[3:]:
        run(Path(file))
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + ALLOWED_BYTES,) * 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bvit"
        for number in range(count):
            variation = VARIATIONS[number % len(VARIATIONS)]
            path.write_bytes(variation(chance.choice(originals), chance))
            try:
                run(path)
                outcomes["opened"] += 1
            except BinaryViTError as error:
                assert "\n" not in str(error) and len(str(error)) < 2000, str(error)
                outcomes["refused"] += 1
                examples.setdefault(variation.__name__, str(error).replace(str(path), "model.bvit"))
    print(json.dumps({"outcomes": outcomes, "examples": examples}))


if __name__ == "__main__":
    main()
