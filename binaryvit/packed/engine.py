"""Exact inference on single bits: images in, logits out, every binary product by XNOR or AND and popcount."""

import copy
import ctypes
from collections.abc import Mapping
from threading import Lock

import torch
from torch import Tensor, nn

from binaryvit.errors import BinaryViTError
from binaryvit.models.layers import FullPrecisionPatchMerging
from binaryvit.models.ops.compiler import call
from binaryvit.models.vision_transformer import BinaryVisionTransformer, Stage
from binaryvit.packed.library import engine_library, instructions
from binaryvit.packed.program import Program, write_program
from binaryvit.packed.tensors import check_one_bit, packed_tensors, restored
from binaryvit.threads import torch_threads


def pack(model: BinaryVisionTransformer, threads: int | None = None) -> "PackedModel":
    """The evaluation mode of a model with 1-bit weights and activations, on the CPU; later changes do not reach it."""
    return PackedModel(model, packed_tensors(model), threads)


class PackedModel:
    """A binary vision transformer that computes on packed bits, on the CPU in float32.

    Bit for bit the evaluation mode of the model with as many threads, on a processor with fused multiply-adds, but for
    attention probabilities that round to exactly half the level. The stem, full-precision merges and the classifier are
    PyTorch's; all between them is one call of C++. Without a compiler the modules compute the same, slowly.

    Args:
        structure: a model of the right shape; its numbers are not read, so it can be on the meta device.
        tensors: the numbers, see `tensors.packed_tensors`.
        threads: how many compute; None: as many as PyTorch uses. While a call runs, all of PyTorch uses as many.

    Attributes:
        threads: as given.
        input_size: (channels, height, width) of an image.
        instructions: what counts bits, see `library.instructions`.

    Raises:
        BinaryViTError: weights or activations of `structure` have 32 bits; `threads` is less than 1.
    """

    def __init__(self, structure: BinaryVisionTransformer, tensors: Mapping[str, Tensor], threads: int | None = None):
        check_one_bit(structure)
        if threads is not None and threads < 1:
            raise BinaryViTError(f"A packed model computes with at least one thread, not with {threads}.")
        self.threads = threads
        self.input_size = (structure.in_chans, structure.img_size, structure.img_size)
        library = engine_library()
        self.instructions = instructions()
        self._programs: list[_LoadedProgram] = []
        if library is not None:
            self._programs = _programs(library, structure, tensors)
            structure = _without_programs(structure)
        self._modules = restored(copy.deepcopy(structure).to("meta"), tensors)

    @torch.no_grad()
    def forward_features(self, images: Tensor) -> Tensor:
        """Images (B, channels, size, size) to the final, normalized tokens (B, N, C); a CLS token is token 0.

        Raises:
            BinaryViTError: the images have another shape, are no floating-point numbers or not on the CPU.
        """
        self._check(images)
        x = images.float()
        with torch_threads(self.threads) as threads:
            if not self._programs:
                return self._modules.forward_features(x)
            for stage, program in zip(self._modules.stages, self._programs, strict=True):
                x = program.run(stage.embed_tokens(x, self._modules.cls_token), threads)
        return x

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, channels, size, size) to logits (B, classes); raises as `forward_features`."""
        with torch_threads(self.threads):
            return self._modules.forward_head(self.forward_features(images))

    def _check(self, images: Tensor) -> None:
        wanted = (
            f"Images are floating-point numbers of shape (batch, {', '.join(map(str, self.input_size))}) on the CPU"
        )
        if not isinstance(images, Tensor):
            raise BinaryViTError(f"{wanted}, in a PyTorch tensor, and this is a {type(images).__name__}.")
        if tuple(images.shape[1:]) != self.input_size or not images.is_floating_point() or images.device.type != "cpu":
            raise BinaryViTError(
                f"{wanted}, and these are {images.dtype} of shape {tuple(images.shape)} on the device {images.device}."
            )


class _LoadedProgram:
    """Stages in a row as the engine runs them, with the memory it needs."""

    def __init__(self, library: ctypes.CDLL, program: Program):
        self._library, self._program = library, program
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._lock = Lock()  # calls share the memory

    def __reduce__(self) -> tuple:
        """A copy, in this process or another, loads the library again and has memory and lock of its own."""
        return _reloaded, (self._program, self._library.lanes())

    def run(self, tokens: Tensor, threads: int) -> Tensor:
        """Tokens (B, N, C) of the first stage to those of the last, (B, N', C')."""
        program, tokens = self._program, tokens.contiguous()
        described = (program.sizes, program.floats, program.words)
        output = tokens.new_empty(len(tokens), program.tokens, program.channels)
        with self._lock:
            needed = torch.zeros((), dtype=torch.int64)
            call(self._library.memory_needed, *described, threads, needed)
            if len(self._memory) < needed:
                self._memory = torch.empty(int(needed), dtype=torch.uint8)
            call(self._library.forward, *described, tokens, output, len(tokens), threads, self._memory)
        return output


def _reloaded(program: Program, lanes: int) -> _LoadedProgram:
    library = engine_library()
    if library is None or library.lanes() != lanes:
        raise BinaryViTError("This packed model was laid out for another processor: load it here from its file.")
    return _LoadedProgram(library, program)


def _programs(
    library: ctypes.CDLL, structure: BinaryVisionTransformer, tensors: Mapping[str, Tensor]
) -> list[_LoadedProgram]:
    """All stages as one program; full-precision merges, which PyTorch computes, separate programs."""
    stages = {f"stages.{index}": stage for index, stage in enumerate(structure.stages)}
    groups: list[dict[str, Stage]] = []
    for name, stage in stages.items():
        if not groups or isinstance(stage.embed, FullPrecisionPatchMerging):
            groups.append({})
        groups[-1][name] = stage
    norms: list[str | None] = [None] * len(groups)
    if not isinstance(structure.norm, nn.Identity):
        norms[-1] = "norm"
    return [
        _LoadedProgram(library, write_program(group, norm, tensors, library.lanes()))
        for group, norm in zip(groups, norms, strict=True)
    ]


def _without_programs(structure: BinaryVisionTransformer) -> BinaryVisionTransformer:
    """A copy with only what the programs do not compute: the layers before each program, and the head."""
    kept = copy.deepcopy(structure, {id(stage.blocks): nn.ModuleList() for stage in structure.stages})
    if not isinstance(kept.stages[-1].embed, FullPrecisionPatchMerging):
        kept.stages = kept.stages[:1]
    kept.norm = nn.Identity()
    return kept
