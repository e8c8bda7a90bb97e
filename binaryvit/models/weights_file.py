"""Inference weights in a small file: every binary weight one bit, the rest float, and how to rebuild the model.

The file is safetensors. A weight the forward pass uses in one bit is stored as `<name>.bits` (uint8, one row per output
channel, the bits of its flattened weight packed big-endian, padded with zeros; 1 means +1) and `<name>.scale` (float32,
one number per output channel). Everything else is stored as it is, floats in the chosen dtype. The metadata hold, under
the format's name, a JSON object: version, variant and model arguments. A full-precision model has no bits.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from binaryvit.errors import BinaryViTError
from binaryvit.files import write_atomically
from binaryvit.models.layers import binary_layers
from binaryvit.models.quantizers import sign

FORMAT = "binaryvit-inference-weights"
VERSION = 1
# Arguments of timm.create_model that read or fetch other files.
LOADING_ARGS = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"})


def save_inference_weights(
    model: nn.Module,
    path: str | Path,
    variant: str,
    model_args: dict[str, Any],
    float_dtype: torch.dtype = torch.float32,
) -> None:
    """Writes what inference needs of a model, atomically.

    Args:
        model: built by `timm.create_model(variant, **model_args)`, and trained.
        model_args: JSON values only.
        float_dtype: of what is not binary; float16 halves a full-precision model and changes its logits.
    """
    tensors = dict(model.state_dict())
    for name, layer in binary_layers(model).items():
        tensors[f"{name}.weight.bits"], tensors[f"{name}.weight.scale"] = pack_weight(layer)
        del tensors[f"{name}.weight"]
    # Scales stay float32: they are few, and the packed weights then rebuild exactly.
    tensors = {
        name: (tensor.to(float_dtype) if tensor.is_floating_point() and not name.endswith(".scale") else tensor)
        .cpu()
        .contiguous()
        for name, tensor in tensors.items()
    }
    description = {"version": VERSION, "variant": variant, "model_args": model_args}
    # One entry: safetensors writes several in random order, and equal models should give equal files.
    metadata = {FORMAT: json.dumps(description, sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_inference_weights(path: str | Path) -> nn.Module:
    """The model of a file of `save_inference_weights`, in evaluation mode.

    Stored as float32, it gives bit for bit the logits of the model that was saved. Its binary layers hold the binary
    weight itself (`layers.BinaryLinear.fix_weight`), so it can be analysed and run, but not trained.

    Raises:
        BinaryViTError: the file is missing, truncated, of another kind or version, or does not fit its own description.
    """
    description, tensors = _read(Path(path))
    model = _build(path, description, tensors)
    try:
        for name, layer in binary_layers(model).items():
            bits, scale = tensors.pop(f"{name}.weight.bits"), tensors.pop(f"{name}.weight.scale")
            layer.fix_weight(unpack_weight(bits, scale, layer.weight.shape))
            tensors[f"{name}.weight"] = layer.weight.detach()
        model.load_state_dict(tensors)
    except (KeyError, RuntimeError, ValueError) as error:
        raise BinaryViTError(f"{path} does not fit the {description['variant']} it describes: {error}") from error
    return model.eval()


def _build(path: str | Path, description: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """The model the description asks for, built only when the file's tensors are those of such a model.

    Only registered names and arguments that load nothing are accepted, so the file can't make timm fetch or open
    another one. A first model without storage (on the meta device) tells whether the description and the tensors agree,
    so that a forged one allocates nothing.
    """
    variant = description.get("variant", "")
    stored = sum(tensor.nbytes for tensor in tensors.values())
    try:
        model_args = description["model_args"]
        if variant not in timm.list_models():
            raise ValueError("no model of this library or timm has that name")
        if loading := sorted(LOADING_ARGS & model_args.keys()):
            raise ValueError(f"its arguments {', '.join(loading)} would load other files")
        _check_bounds(model_args, largest=8 * stored, deepest=len(tensors))
        model_args = {name: tuple(value) if isinstance(value, list) else value for name, value in model_args.items()}
        with torch.device("meta"):
            described = timm.create_model(variant, **model_args)
        numbers = sum(parameter.numel() for parameter in described.parameters())
        if numbers > 8 * stored:
            raise ValueError(f"a model of {numbers:,} numbers does not fit into {stored:,} bytes")
        return timm.create_model(variant, **model_args)
    except Exception as error:
        raise BinaryViTError(f"{path} describes a model that can't be built here, {variant!r}: {error}") from error


def _check_bounds(model_args: dict[str, Any], largest: int, deepest: int) -> None:
    """Refuses sizes that the stored tensors can't have, before a model of them is even described."""
    for name, value in model_args.items():
        values = value if isinstance(value, list) else [value]
        limit = deepest if name in ("depth", "depths") else largest
        if any(isinstance(number, int) and abs(number) > limit for number in values):
            raise ValueError(f"{name}={value!r} is more than the file holds")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A file's description and tensors."""
    if not path.is_file():
        raise BinaryViTError(f"There is no file {path} with inference weights; check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise BinaryViTError(
                    f"{path} holds no inference weights of this library; load it with checkpoints.load_checkpoint."
                )
            description = json.loads(metadata[FORMAT])
            if not isinstance(description, dict) or description.get("version") != VERSION:
                raise BinaryViTError(
                    f"{path} is not of version {VERSION}, the one this library reads; "
                    "use the version of the library that wrote it."
                )
            return description, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise BinaryViTError(f"{path} is truncated or damaged, or no safetensors file; write it again.") from error


def pack_weight(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A binary layer's signs (out, bytes per row) and scales (out,)."""
    weight = layer.weight.detach()
    signs = weight if layer.is_fixed else sign(layer.centred_weight().detach())
    scale = layer.effective_weight().detach().abs().flatten(1)[:, 0]
    bits = np.packbits((signs.flatten(1) > 0).cpu().numpy(), axis=1)
    return torch.from_numpy(bits), scale.float()


def unpack_weight(bits: Tensor, scale: Tensor, shape: torch.Size) -> Tensor:
    """The binary weight s * sign(W) in float32."""
    rows, columns = shape[0], shape[1:].numel()
    if bits.dtype != torch.uint8 or bits.shape != (rows, -(-columns // 8)) or scale.shape != (rows,):
        raise ValueError(f"packed weights of shape {tuple(bits.shape)} for a weight of shape {tuple(shape)}")
    unpacked = np.unpackbits(bits.numpy(), axis=1, count=columns)
    signs = torch.from_numpy(unpacked).float() * 2 - 1
    return (scale.float().unsqueeze(1) * signs).reshape(shape)
