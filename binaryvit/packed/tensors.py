"""What the evaluation mode of a model with 1-bit weights and activations consists of, and the modules rebuilt from it.

Names are those of the model's state dict, but for two things:

- a binary weight is `<layer>.weight.bits` (uint8, one row per output channel, `weights_file`'s packing) and
  `<layer>.weight.scale` (float32, one number per output channel);
- a batch norm has no running statistics: it is fma(x, weight, bias).

Scale and norm stay apart, although both multiply: the model rounds the scaled product to float32 before it normalizes
it. One factor for both rounds differently and flips a sign in every second image of 224 pixels, and one flipped sign
flips others: on 7 of 12 random images the logits of a `binaryvit_small_patch4_224` then moved by 0.3 to 23%.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from binaryvit.errors import BinaryViTError
from binaryvit.models.bits import pack_weight, unpack_weight
from binaryvit.models.layers import BinaryUnit, TokenBatchNorm, binary_layers
from binaryvit.models.vision_transformer import BinaryVisionTransformer


def packed_tensors(model: BinaryVisionTransformer) -> dict[str, Tensor]:
    """What the evaluation mode of a model with 1-bit weights and activations consists of, on the CPU.

    Raises:
        BinaryViTError: the model is of another kind or has 32-bit weights or activations.
    """
    check_one_bit(model)
    if any(tensor.device.type != "cpu" for tensor in model.state_dict().values()):
        model = copy.deepcopy(model).cpu()  # another device may round scales and folded norms differently
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, layer in binary_layers(model).items():
        del tensors[f"{name}.weight"]
        tensors[f"{name}.weight.bits"], tensors[f"{name}.weight.scale"] = pack_weight(layer)
    for name, norm in _norms(model).items():
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{name}.")}
        weight, bias = _folded_statistics(norm)
        tensors |= {f"{name}.batch_norm.weight": weight, f"{name}.batch_norm.bias": bias}
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def check_one_bit(model: nn.Module) -> None:
    """Refuses a model that is no binary vision transformer with 1-bit weights and activations."""
    is_ours = isinstance(model, BinaryVisionTransformer)
    units = [block.attn.q for stage in model.stages for block in stage.blocks] if is_ours else []
    if not is_ours or not all(isinstance(unit, BinaryUnit) for unit in units):
        raise BinaryViTError(
            f"Only a vision transformer with binary layers runs on single bits, and this {type(model).__name__} is "
            "none; use a binary variant of the ladder."
        )
    bits = {(unit.linear.weight_bits, unit.binarize.activation_bits) for unit in units}
    if bits - {(1, 1)}:
        weight_bits, activation_bits = max(bits)
        raise BinaryViTError(
            f"This model has {weight_bits}-bit weights and {activation_bits}-bit activations; "
            "only with one bit for both are its products XNOR and popcount."
        )


def restored(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> nn.Module:
    """A module of a model, built without numbers (on the meta device), with those of `packed_tensors` in it.

    In evaluation mode it computes bit for bit what the original does: batch norms have mean 0 and a variance whose
    deviation is exactly 1.
    """
    numbers = {}
    for name, layer in binary_layers(module).items():
        bits, scale = (tensors[f"{prefix}{name}.weight.{part}"] for part in ("bits", "scale"))
        layer.fix_weight(unpack_weight(bits, scale, layer.weight.shape))
        numbers[f"{name}.weight"] = layer.weight.detach()
    for name, norm in _norms(module).items():
        zeros = torch.zeros(norm.batch_norm.num_features, dtype=torch.float32)
        numbers |= {
            f"{name}.batch_norm.running_mean": zeros,
            f"{name}.batch_norm.running_var": 1 - norm.batch_norm.eps + zeros,
            f"{name}.batch_norm.num_batches_tracked": torch.zeros((), dtype=torch.int64),
        }
    numbers |= {name: tensors[prefix + name] for name in module.state_dict().keys() - numbers.keys()}
    module.load_state_dict(numbers, assign=True)
    return module.requires_grad_(False).eval()


def _norms(model: nn.Module) -> dict[str, TokenBatchNorm]:
    return {name: module for name, module in model.named_modules() if isinstance(module, TokenBatchNorm)}


def _folded_statistics(norm: TokenBatchNorm) -> tuple[Tensor, Tensor]:
    """What PyTorch's batch norm multiplies with and adds in evaluation mode, to the last bit (on a CPU with FMA)."""
    statistics = norm.batch_norm
    mean, variance = statistics.running_mean.detach().float(), statistics.running_var.detach().float()
    weight = torch.rsqrt(variance + statistics.eps) * statistics.weight.detach().float()
    # In float64 the product is exact, so the difference is rounded once, as in a fused multiply-add.
    bias = (statistics.bias.detach().double() - mean.double() * weight.double()).float()
    return weight, bias
