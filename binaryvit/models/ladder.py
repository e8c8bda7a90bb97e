"""The ladder: its variants, registered with timm, and each variant's label, colour and marker.

The variants climb the paper's ladder (Table 3) from the ReActNet-style binary DeiT to BinaryViT, at 224 x 224 ("small")
and, for training on a CPU, at 32 x 32 ("micro").
"""

from dataclasses import dataclass
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model

from binaryvit.models.vision_transformer import BinaryVisionTransformer
from binaryvit.palette import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

# The micro family is a scale model of the small one: the pyramid's first stage has 64 channels, as every head has, the
# columnar grid is that of its last stage but one (8 x 8; 14 x 14), and it has 1.08 of the parameters, 0.86 of the BOPs
# and 0.70 of the OPs of the columnar model with affine (small: 1.01, 0.85, 0.54).
_COLUMNAR = {
    "small": dict(img_size=224, patch_size=16, embed_dims=384, depths=12, num_heads=6, mlp_ratios=4),
    "micro": dict(
        img_size=32, patch_size=4, embed_dims=192, depths=3, num_heads=3, mlp_ratios=4, attention_level="keys"
    ),
}
_PYRAMID = {
    "small": dict(
        img_size=224,
        patch_size=4,
        embed_dims=(64, 128, 256, 512),
        depths=(3, 4, 8, 4),
        num_heads=(1, 2, 4, 8),
        mlp_ratios=(8, 8, 4, 4),
        reductions=(8, 4, 1, 1),
        stem_norm=True,
    ),
    "micro": dict(
        img_size=32,
        patch_size=2,
        embed_dims=(64, 128, 256),
        depths=(2, 2, 1),
        num_heads=(1, 2, 4),
        mlp_ratios=(8, 4, 3),
        reductions=(4, 2, 1),
        stem_norm=True,
        attention_level="keys",
    ),
}

# Each family's full-precision teacher, then its binary variants in the order of the paper's Table 3.
LADDER: dict[str, tuple[str, ...]] = {
    "small": (
        "deit_small_patch16_224",
        "reactdeit_small_patch16_224",
        "reactdeit_small_patch16_224_avg_pool",
        "reactdeit_small_patch16_224_avg_pool_multi_branch",
        "reactdeit_small_patch16_224_avg_pool_multi_branch_ls",
        "binaryvit_small_patch4_224",
        "binaryvit_small_patch4_224_some_fp",
    ),
    "micro": (
        "deit_micro_patch4_32",
        "reactdeit_micro_patch4_32",
        "reactdeit_micro_patch4_32_avg_pool",
        "reactdeit_micro_patch4_32_avg_pool_multi_branch",
        "reactdeit_micro_patch4_32_avg_pool_multi_branch_ls",
        "binaryvit_micro_patch2_32",
        "binaryvit_micro_patch2_32_some_fp",
    ),
}

# Who is who in a family.
TEACHERS = {name: family[0] for name, family in LADDER.items()}
BINARY_VARIANTS = frozenset(name for family in LADDER.values() for name in family[1:])
BASELINES = {name: family[1] for name, family in LADDER.items()}
LAST_COLUMNAR = {name: family[4] for name, family in LADDER.items()}
BINARYVIT = {name: family[5] for name, family in LADDER.items()}

# What the rungs of the ladder differ in, in its order: the shape, by family, and the parts.
_RUNGS: tuple[tuple[dict[str, dict[str, Any]], dict[str, Any]], ...] = (
    (_COLUMNAR, dict(global_pool="token", pooling_branches=False, affine=False)),
    (_COLUMNAR, dict(global_pool="avg", pooling_branches=False, affine=False)),
    (_COLUMNAR, dict(global_pool="avg", pooling_branches=True, affine=False)),
    (_COLUMNAR, dict(global_pool="avg", pooling_branches=True, affine=True)),
    (_PYRAMID, dict(global_pool="avg", pooling_branches=True, affine=True, merge="binary")),
    (_PYRAMID, dict(global_pool="avg", pooling_branches=True, affine=True, merge="full_precision")),
)


def _pretrained_cfg(variant: str) -> dict[str, Any]:
    """timm's description of a variant's input and classifier; no weights are published, so it names no source."""
    micro = variant in LADDER["micro"]
    is_deit = variant.startswith("deit_")
    return dict(
        num_classes=10 if micro else 1000,
        input_size=(3, 32, 32) if micro else (3, 224, 224),
        fixed_input_size=True,
        pool_size=None,
        crop_pct=1.0 if micro else 0.875,
        interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv="patch_embed.proj" if is_deit else "stages.0.embed.proj",
        classifier="head",
    )


default_cfgs = generate_default_cfgs(
    {name: _pretrained_cfg(name) for family in LADDER.values() for name in family if name != "deit_small_patch16_224"}
)


def arguments_of(variant: str) -> dict[str, Any]:
    """The arguments of `BinaryVisionTransformer` with which a binary variant of the ladder is built."""
    family = next(family for family, names in LADDER.items() if variant in names[1:])
    shape, parts = _RUNGS[LADDER[family].index(variant) - 1]
    return shape[family] | parts


def _register_binary_variant(name: str) -> None:
    """Defines `name(pretrained=False, **model_args)`, which builds this rung of the ladder, and tells timm of it."""
    arguments = arguments_of(name)
    widths = arguments["embed_dims"]
    features = tuple(range(len(widths))) if isinstance(widths, tuple) else 3  # all stages, or the last three blocks

    def build(pretrained: bool = False, **model_args: Any) -> BinaryVisionTransformer:
        return build_model_with_cfg(
            BinaryVisionTransformer,
            name,
            pretrained,
            feature_cfg=dict(out_indices=features, feature_cls="getter"),
            **{**arguments, **model_args},
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{name}, a rung of the ladder; `model_args` override the arguments that `arguments_of` lists."
    globals()[name] = register_model(build)  # timm adds the name to __all__


for _, *_binary in LADDER.values():
    for _name in _binary:
        _register_binary_variant(_name)


@register_model
def deit_micro_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The full-precision teacher of the micro family: timm's DeiT at the width and depth of its columnar models."""
    shape = dict(img_size=32, patch_size=4, embed_dim=192, depth=3, num_heads=3)
    return build_model_with_cfg(
        VisionTransformer,
        "deit_micro_patch4_32",
        pretrained,
        feature_cfg=dict(out_indices=3, feature_cls="getter"),
        **{**shape, **kwargs},
    )


@dataclass(frozen=True)
class VariantStyle:
    """A variant's label in every table and figure, and its colour and marker in figures."""

    label: str
    colour: str
    marker: str
    adds: str = ""  # what it has and the step before it lacks


# In the order of the ladder: the teacher, then the paper's rows.
_LADDER_STYLES = (
    VariantStyle("full-precision DeiT (teacher)", BLACK, "*"),
    VariantStyle("ReActNet-DeiT (baseline)", ORANGE, "o", "1-bit weights and activations; a CLS token is classified"),
    VariantStyle("+ average pooling", SKY, "s", "the mean over all tokens is classified"),
    VariantStyle("+ pooling branches", GREEN, "^", "four average poolings in parallel with each feed-forward network"),
    VariantStyle("+ affine", PURPLE, "D", "scale and shift per channel before each residual addition"),
    VariantStyle("BinaryViT (+ pyramid)", VERMILION, "v", "stages of fewer tokens and more channels"),
    VariantStyle("BinaryViT, fp patch embeddings", BLUE, "P", "full-precision convolutions between stages"),
)
_VARIANT_STYLES = {
    name: style for family in LADDER.values() for name, style in zip(family, _LADDER_STYLES, strict=True)
}


def variant_style(variant: str) -> VariantStyle:
    """Label, colour and marker of a variant by its timm name; a model outside the ladder is grey and keeps its name."""
    outside = VariantStyle(variant, GREY, "X" if variant.endswith("_shortcuts") else "h")
    return _VARIANT_STYLES.get(variant, outside)
