"""The names of parameters and buffers in the authors' training code, and ours."""

import re

from torch import Tensor

from binaryvit.errors import BinaryViTError

# The authors' names within a block, part by part, and ours.
_BLOCK_NAMES = {
    "layernorm_before": "norm1.batch_norm",
    "layernorm_after": "norm2.batch_norm",
    "attention.output.layerscale": "affine1",
    "output.layerscale": "affine2",
    "layerscale_h3": "pool.affines.pool3x1",
    "layerscale_w3": "pool.affines.pool1x3",
    "layerscale_h5": "pool.affines.pool5x1",
    "layerscale_w5": "pool.affines.pool1x5",
    "attention.attention.att_prob_clip": "attn.binarize_attn.level",
    "attention.attention.norm_context": "attn.norm.batch_norm",
    "attention.attention.rprelu_context": "attn.act",
}
for _theirs, _ours, _weight, _norm in (
    ("q", "q", "query", "normq"),
    ("k", "k", "key", "normk"),
    ("v", "v", "value", "normv"),
    ("r", "reduce", "reduction", "norm_r"),
):
    _BLOCK_NAMES |= {
        f"attention.attention.{_weight}": f"attn.{_ours}.linear",
        f"attention.attention.move{_theirs}": f"attn.{_ours}.binarize.shift",
        f"attention.attention.{_norm}": f"attn.{_ours}.norm.batch_norm",
        f"attention.attention.rprelu{_theirs}": f"attn.{_ours}.act",
    }
    if _theirs != "r":
        _BLOCK_NAMES[f"attention.attention.move{_theirs}2"] = f"attn.binarize_{_ours}.shift"
for _theirs, _ours in (("attention.output", "attn.proj"), ("intermediate", "mlp.fc1"), ("output", "mlp.fc2")):
    _BLOCK_NAMES |= {
        f"{_theirs}.dense": f"{_ours}.linear",
        f"{_theirs}.move": f"{_ours}.binarize.shift",
        f"{_theirs}.norm": f"{_ours}.norm.batch_norm",
        f"{_theirs}.rprelu": f"{_ours}.act",
    }
_MERGE_NAMES = {
    "norm0": "embed.norm_in.batch_norm",
    "move": "embed.binarize.shift",
    "proj": "embed.proj",
    "norm": "embed.norm.batch_norm",
    "rprelu": "embed.act",
    "position_embeddings": "pos_embed",
}
_TOP_NAMES = {
    "classifier": "head",
    "vit.layernorm": "norm.batch_norm",
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "stages.0.pos_embed",
    "vit.embeddings.patch_embeddings.projection": "stages.0.embed.proj",
    "vit.embeddings.norm": "stages.0.embed.norm.batch_norm",
}
_LEAF_NAMES = {"move1": "shift_in", "prelu.weight": "slope", "move2": "shift_out"}


def has_authors_names(state_dict: dict[str, Tensor]) -> bool:
    """Whether a state dict uses the names of the authors' training code."""
    return any(name.startswith("vit.embeddings.") for name in state_dict)


def our_name(name: str, depths: list[int]) -> str:
    """The parameter or buffer of `BinaryVisionTransformer` that the authors' code calls `name`.

    Args:
        name: such as "vit.encoder.layer.3.attention.attention.query.weight"; blocks are numbered through all stages.
        depths: the model's number of blocks per stage.

    Raises:
        BinaryViTError: the authors' models have no such name, or the model has fewer blocks.
    """
    if match := re.fullmatch(r"vit\.encoder\.layer\.(\d+)\.(.+)", name):
        stage, block = 0, int(match[1])
        while stage < len(depths) and block >= depths[stage]:
            block -= depths[stage]
            stage += 1
        if stage == len(depths):
            raise BinaryViTError(f"{name} belongs to block {match[1]}, but the model has {sum(depths)} blocks only.")
        prefix, rest, names = f"stages.{stage}.blocks.{block}.", match[2], _BLOCK_NAMES
    elif match := re.fullmatch(r"vit\.encoder\.patch_embed(\d+)\.(.+)", name):
        prefix, rest, names = f"stages.{match[1]}.", match[2], _MERGE_NAMES
    else:
        prefix, rest, names = "", name, _TOP_NAMES
    # The longest part that is known is the module (or the parameter itself); the rest names a tensor in it.
    parts = rest.split(".")
    for end in range(len(parts), 0, -1):
        module, leaf = ".".join(parts[:end]), ".".join(parts[end:])
        if module in names:
            return prefix + names[module] + ("." + _LEAF_NAMES.get(leaf, _affine_leaf(module, leaf)) if leaf else "")
    raise BinaryViTError(f"{name} is not a name of the authors' binary vision transformers.")


def _affine_leaf(module: str, leaf: str) -> str:
    return "beta" if leaf == "move" and "layerscale" in module else leaf


def from_authors_names(state_dict: dict[str, Tensor], depths: list[int]) -> dict[str, Tensor]:
    """A state dict of the authors' code under our names and in our shapes; `depths` as in `our_name`."""
    renamed = {}
    for name, tensor in state_dict.items():
        ours = our_name(name, depths)
        # The merges' shift is stored as (1, C, 1, 1) for an NCHW activation; ours acts on tokens.
        renamed[ours] = tensor.flatten() if ours.endswith("embed.binarize.shift") else tensor
    return renamed
