"""The sizes of a binary vision transformer's stages, checked before anything is built, and of any model's images."""

from dataclasses import dataclass
from typing import Any

from timm.data import resolve_data_config
from torch import nn

from binaryvit.errors import BinaryViTError


@dataclass(frozen=True)
class StageShape:
    """One stage: channels, blocks, heads, FFN width, side of its token grid, spatial reduction of keys and values."""

    dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    grid_size: int
    reduction: int

    @property
    def keys(self) -> int:
        """The places on the grid that each query may attend to."""
        return (self.grid_size // self.reduction) ** 2


def image_size(model: nn.Module) -> tuple[int, int]:
    """Height and width of the images that a model was built for."""
    # A position embedding of another size was resampled when the model was built, and its description is outdated.
    size = getattr(getattr(model, "patch_embed", model), "img_size", None)
    size = size or resolve_data_config({}, model=model)["input_size"][1:]
    return (size, size) if isinstance(size, int) else tuple(size)


def input_channels(model: nn.Module) -> int:
    """Channels of the images that a model was built for: those of its first convolution, the stem's."""
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Refuses an argument that is not one of its choices."""
    if isinstance(value, bool) or value not in choices:
        raise BinaryViTError(f"{name}={value!r} is not possible; choose one of {', '.join(map(repr, choices))}.")


def initial_attention_level(attention_level: float | str, keys: int) -> float:
    """The initial level a of an attention over that many keys: a number, or with "keys" one over the keys.

    Raises BinaryViTError for anything else.
    """
    if attention_level == "keys":
        return 1 / keys
    is_number = isinstance(attention_level, int | float) and not isinstance(attention_level, bool)
    if not is_number or not 0 < attention_level <= 1:
        raise BinaryViTError(
            f"attention_level={attention_level!r} is not possible: give a number above 0 and at most 1, such as the "
            'paper\'s 0.005, or "keys" for one over the number of keys.'
        )
    return float(attention_level)


def stage_shapes(
    img_size: int,
    patch_size: int,
    embed_dims: int | tuple[int, ...],
    depths: int | tuple[int, ...],
    num_heads: int | tuple[int, ...],
    mlp_ratios: int | tuple[int, ...],
    reductions: int | tuple[int, ...],
    global_pool: str,
    pooling_branches: bool,
) -> list[StageShape]:
    """The stages that the shape arguments of `vision_transformer.BinaryVisionTransformer` describe.

    Raises:
        BinaryViTError: names the argument that is inconsistent, and what would be right.
    """
    check_choice("global_pool", global_pool, ("", "avg", "token"))
    num_stages = count_stages("embed_dims", embed_dims)
    per_stage = {
        name: one_per_stage(name, value, num_stages, like="embed_dims")
        for name, value in dict(
            embed_dims=embed_dims, depths=depths, num_heads=num_heads, mlp_ratios=mlp_ratios, reductions=reductions
        ).items()
    }
    check_grid(img_size, patch_size, num_stages)
    if global_pool == "token":
        _check_cls_token(num_stages, per_stage["reductions"], pooling_branches)

    shapes: list[StageShape] = []
    for index, (dim, depth, heads, mlp_ratio, reduction) in enumerate(zip(*per_stage.values(), strict=True)):
        where = f" in stage {index}" if num_stages > 1 else ""
        grid_size = img_size // patch_size // 2**index
        if dim % heads:
            raise BinaryViTError(
                f"embed_dims={dim} is not divisible by num_heads={heads}{where}; "
                f"choose a multiple, such as {heads * max(1, round(dim / heads))}."
            )
        if shapes:
            check_widening("embed_dims", shapes[-1].dim, dim, index)
        if grid_size % reduction:
            raise BinaryViTError(
                f"reductions={reduction}{where} does not divide the grid of {grid_size} x {grid_size} tokens there; "
                f"choose a divisor of {grid_size}."
            )
        shapes.append(StageShape(dim, depth, heads, dim * mlp_ratio, grid_size, reduction))
    return shapes


def one_side(name: str, value: Any) -> int:
    """One side from an int or, as timm passes sizes, a pair of equal ones."""
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(set(sides)) != 1 or not isinstance(sides[0], int) or isinstance(sides[0], bool) or sides[0] < 1:
        raise BinaryViTError(f"{name}={value!r} must be one positive whole number, for images and patches are square.")
    return sides[0]


def count_stages(name: str, value: Any) -> int:
    """How many stages the argument that holds their channels describes: a number is one. Refuses an empty list."""
    if not isinstance(value, (tuple, list)):
        return 1
    if not value:
        raise BinaryViTError(f"{name}={value!r} describes no stage; give the channels of each.")
    return len(value)


def one_per_stage(name: str, value: Any, num_stages: int, like: str) -> tuple[int, ...]:
    """Positive whole numbers, one per stage, from as many or one for all; the argument `like` says how many."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * num_stages
    if len(values) != num_stages:
        raise BinaryViTError(
            f"{name}={value!r} describes {len(values)} stages and {like} {num_stages}; give one value per stage."
        )
    if any(not isinstance(number, int) or isinstance(number, bool) or number < 1 for number in values):
        detail = " The FFN's width must be a multiple of the channels." if name == "mlp_ratios" else ""
        raise BinaryViTError(f"{name}={value!r} must consist of positive whole numbers.{detail}")
    return values


def check_grid(img_size: int, patch_size: int, num_stages: int) -> None:
    """Refuses an image that patches and the halvings of its grid between stages don't divide."""
    smallest = patch_size * 2 ** (num_stages - 1)
    if img_size % smallest:
        merges = f" and their grid to be halved {num_stages - 1} times" if num_stages > 1 else ""
        raise BinaryViTError(
            f"img_size={img_size} is not divisible by {smallest}, as it must be to be cut into patches of "
            f"patch_size={patch_size}{merges}; choose a multiple, such as "
            f"{smallest * max(1, round(img_size / smallest))}."
        )


def check_widening(name: str, before: int, dim: int, index: int) -> None:
    """Refuses the channels of stage number `index` if they are no multiple of those of the stage before."""
    if dim % before:
        raise BinaryViTError(
            f"{name}={dim} in stage {index} is no multiple of the {before} channels of the stage before, which the "
            f"shortcut between them repeats; choose a multiple, such as {before * max(1, round(dim / before))}."
        )


def _check_cls_token(num_stages: int, reductions: tuple[int, ...], pooling_branches: bool) -> None:
    if pooling_branches:
        raise BinaryViTError(
            "pooling_branches=True needs tokens that form a grid, and the CLS token of global_pool='token' does not; "
            "use global_pool='avg' or pooling_branches=False."
        )
    if num_stages > 1 or reductions != (1,):
        raise BinaryViTError(
            "global_pool='token' adds a CLS token, which patch merging and spatial reduction can't place on the grid; "
            "use global_pool='avg', or one stage with reductions=1."
        )
