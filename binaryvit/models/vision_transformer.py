"""The binary vision transformers: one model class, columnar and pyramid. Its variants are in `ladder`.

A columnar model (the shape of DeiT) is a pyramid with one stage.
"""

import math
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates, resample_abs_pos_embed, trunc_normal_
from timm.models import checkpoint as checkpoint_block
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from binaryvit.errors import BinaryViTError
from binaryvit.models.authors_names import from_authors_names, has_authors_names
from binaryvit.models.classifier import TokenClassifier
from binaryvit.models.layers import (
    BinaryBlock,
    BinaryPatchMerging,
    FullPrecisionPatchMerging,
    PatchEmbedding,
    TokenBatchNorm,
    prepare_binary_weights,
)
from binaryvit.models.shapes import check_choice, initial_attention_level, one_side, stage_shapes


class BinaryVisionTransformer(TokenClassifier):
    """A vision transformer with 1-bit (or, independently, 32-bit) weights and activations.

    Images (B, in_chans, img_size, img_size) become tokens of a square grid; each stage embeds or merges them, adds a
    position embedding, and runs its blocks; the final batch norm, the token pooling and a full-precision linear layer
    give (B, num_classes) logits. Stem and head stay in full precision.

    Args:
        img_size: side of the square input in pixels, a multiple of patch_size; or a pair of equal sides.
        patch_size: side and stride of the stem's convolution; or a pair.
        num_classes: 0 removes the classifier.
        global_pool: "avg" averages the tokens, "token" reads a CLS token (columnar models without pooling branches).
        embed_dims, depths, num_heads, mlp_ratios, reductions: channels, blocks, attention heads, FFN width / channels
            and spatial reduction R of the keys and values; one value per stage, or one for a model of one stage.
        pooling_branches, affine: the paper's additions, see `layers.BinaryBlock`.
        merge: "binary" or "full_precision" patch merging between stages.
        stem_norm: a batch norm after the stem (the pyramid has it, the columnar models do not).
        weight_bits, activation_bits: 1 or 32.
        attention_level: where the level a of binary attention starts; the paper's 0.005 is one over the 197 keys of
            DeiT-S. "keys": one over the number of keys of each block's attention.
        drop_rate, attn_drop_rate, drop_path_rate: dropout before the classifier, on attention probabilities, and
            stochastic depth of the last block (rising linearly from 0 at the first).

    Raises:
        BinaryViTError: an argument that is inconsistent with the others, named, with what would be right.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: int | tuple[int, ...] = 384,
        depths: int | tuple[int, ...] = 12,
        num_heads: int | tuple[int, ...] = 6,
        mlp_ratios: int | tuple[int, ...] = 4,
        reductions: int | tuple[int, ...] = 1,
        pooling_branches: bool = True,
        affine: bool = True,
        merge: str = "binary",
        stem_norm: bool = False,
        weight_bits: int = 1,
        activation_bits: int = 1,
        attention_level: float | str = 0.005,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        check_choice("merge", merge, ("binary", "full_precision"))
        check_choice("weight_bits", weight_bits, (1, 32))
        check_choice("activation_bits", activation_bits, (1, 32))
        img_size, patch_size = one_side("img_size", img_size), one_side("patch_size", patch_size)
        shapes = stage_shapes(
            img_size, patch_size, embed_dims, depths, num_heads, mlp_ratios, reductions, global_pool, pooling_branches
        )
        self.img_size = img_size
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.num_prefix_tokens = 1 if global_pool == "token" else 0
        self.num_features = self.head_hidden_size = self.embed_dim = shapes[-1].dim
        self.grad_checkpointing = False
        bits = dict(weight_bits=weight_bits, activation_bits=activation_bits)

        self.cls_token = nn.Parameter(torch.empty(1, 1, shapes[0].dim)) if self.num_prefix_tokens else None
        drop_paths = calculate_drop_path_rates(drop_path_rate, [shape.depth for shape in shapes], stagewise=True)
        stages = []
        for index, shape in enumerate(shapes):
            if index == 0:
                embed = PatchEmbedding(img_size, in_chans, shape.dim, patch_size, norm=stem_norm)
            elif merge == "binary":
                embed = BinaryPatchMerging(shapes[index - 1].dim, shape.dim, shapes[index - 1].grid_size, **bits)
            else:
                embed = FullPrecisionPatchMerging(shapes[index - 1].dim, shape.dim, shapes[index - 1].grid_size)
            level = initial_attention_level(attention_level, shape.keys + self.num_prefix_tokens)
            blocks = [
                BinaryBlock(
                    dim=shape.dim,
                    num_heads=shape.num_heads,
                    mlp_dim=shape.mlp_dim,
                    grid_size=shape.grid_size,
                    reduction=shape.reduction,
                    pooling_branches=pooling_branches,
                    affine=affine,
                    attention_level=level,
                    attn_drop=attn_drop_rate,
                    drop_path=drop_path,
                    **bits,
                )
                for drop_path in drop_paths[index]
            ]
            stages.append(Stage(embed, shape.dim, shape.grid_size, blocks, has_cls_token=self.cls_token is not None))
        self.stages = nn.ModuleList(stages)
        self.is_columnar = len(stages) == 1
        self.feature_info = self._describe_features(patch_size)

        self.norm = TokenBatchNorm(self.num_features)
        self._add_head(num_classes, drop_rate)
        self._init_embeddings()
        self.register_load_state_dict_pre_hook(_adapt_state_dict)

    def _init_embeddings(self) -> None:
        """Linear layers and convolutions keep PyTorch's initialization; only the embeddings have their own."""
        for stage in self.stages:
            trunc_normal_(stage.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)

    def _describe_features(self, patch_size: int) -> list[dict[str, Any]]:
        """timm's feature_info: a pyramid's features are its stages' outputs, a columnar model's its blocks'."""
        if self.is_columnar:
            names = [f"stages.0.blocks.{i}" for i in range(len(self.stages[0].blocks))]
            return [dict(num_chs=self.num_features, reduction=patch_size, module=name) for name in names]
        return [
            dict(num_chs=stage.dim, reduction=patch_size * 2**i, module=f"stages.{i}")
            for i, stage in enumerate(self.stages)
        ]

    def _feature_ends(self) -> list[int]:
        """The number of the last block of each feature in feature_info, blocks counted through all stages."""
        depths = [len(stage.blocks) for stage in self.stages]
        if self.is_columnar:
            return list(range(depths[0]))
        return [sum(depths[: i + 1]) - 1 for i in range(len(depths))]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters with more than one dimension that weight decay must spare: the embeddings."""
        names = {f"stages.{i}.pos_embed" for i in range(len(self.stages))}
        return names | {"cls_token"} if self.cls_token is not None else names

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for layer-wise rates: the stem, then the blocks (coarse: the stages), then the head.

        The final norm is in the last block's group; coarse, in the head's.
        """
        blocks = r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        if not coarse:
            blocks.insert(1, (r"^stages\.([1-9]\d*)\.(?:embed|pos_embed)", (-1,)))
        return dict(stem=r"^cls_token|^stages\.0\.(?:embed|pos_embed)", blocks=blocks)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass instead of storing its activations.

        The gradient stays the same. The running statistics of the blocks' batch norms are updated twice a step, as
        always with checkpointed batch norm: they follow the data as if their momentum were 0.19 instead of 0.1. (A
        block's last norm may be updated once: what comes after the last stored tensor is not recomputed.)
        """
        self.grad_checkpointing = enable

    def _forward_blocks(self, x: Tensor, take: list[int], last: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """Images through all blocks, or up to block number `last`; also the tokens after the blocks in `take`."""
        taken, number = [], 0
        for stage in self.stages:
            x = stage.embed_tokens(x, self.cls_token)
            for block in stage.blocks:
                x = checkpoint_block(block, x) if self.grad_checkpointing and self.training else block(x)
                if number in take:
                    taken.append(x)
                if number == last:
                    return x, taken
                number += 1
        return x, taken

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the chosen stages (pyramid) or blocks (columnar), and the final one; timm's contract.

        Args:
            x: images (B, in_chans, img_size, img_size).
            indices: the last n features if an int, all if None, else the chosen ones.
            norm: applies the final norm to the features that have its width; others can't take it. It is a batch norm
                trained on the last feature: in training mode others would enter its statistics.
            stop_early: ends after the last chosen feature, whose width the final norm must have unless
                intermediates_only.
            output_fmt: "NCHW" grids or "NLC" tokens, both without the CLS token.
            intermediates_only: leaves out the final, normalized feature.
            return_prefix_tokens: makes each feature a pair (feature, CLS token), for models that have one.

        Raises:
            BinaryViTError: an unknown output_fmt, or the final norm on a feature of another width.
        """
        check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        take, last = feature_take_indices(len(self.feature_info), indices)
        ends = self._feature_ends()
        x, taken = self._forward_blocks(x, [ends[i] for i in take], ends[last] if stop_early else None)
        if norm:
            if any(y.shape[-1] != self.num_features for y in taken):
                raise BinaryViTError(
                    f"norm=True applies to features of {self.num_features} channels only; "
                    "choose indices of the last stage or norm=False."
                )
            taken = [self.norm(y) for y in taken]
        prefix = [y[:, : self.num_prefix_tokens] for y in taken]
        taken = [y[:, self.num_prefix_tokens :] for y in taken]
        if output_fmt == "NCHW":
            taken = [y.transpose(1, 2).unflatten(2, (int(y.shape[1] ** 0.5), -1)).contiguous() for y in taken]
        if return_prefix_tokens and self.num_prefix_tokens:
            taken = list(zip(taken, prefix, strict=True))
        if intermediates_only:
            return taken
        if x.shape[-1] != self.num_features:
            raise BinaryViTError(
                f"stop_early=True ends at a feature of {x.shape[-1]} channels, and the final norm is for "
                f"{self.num_features}: choose intermediates_only=True, or stop_early=False."
            )
        return self.norm(x), taken

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages or blocks after the last chosen feature; returns the chosen indices."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        pruned = last < len(self.feature_info) - 1
        if self.is_columnar:
            self.stages[0].blocks = self.stages[0].blocks[: last + 1]
        else:
            self.stages = self.stages[: last + 1]
        self.feature_info = self.feature_info[: last + 1]
        self.num_features = self.head_hidden_size = self.embed_dim = self.feature_info[-1]["num_chs"]
        if prune_norm or pruned:
            self.norm = nn.Identity()
        if prune_head or pruned:
            self.reset_classifier(0)
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """Images to the final, normalized tokens (B, N, C); a CLS token is token 0."""
        x, _ = self._forward_blocks(x, take=[])
        return self.norm(x)


class Stage(nn.Module):
    """The blocks on one grid, with the layer that brings the tokens there and their position embedding."""

    def __init__(self, embed: nn.Module, dim: int, grid_size: int, blocks: list[BinaryBlock], has_cls_token: bool):
        super().__init__()
        self.dim = dim
        self.grid_size = grid_size
        self.embed = embed
        self.pos_embed = nn.Parameter(torch.empty(1, grid_size**2 + has_cls_token, dim))
        self.blocks = nn.ModuleList(blocks)

    def embed_tokens(self, x: Tensor, cls_token: Tensor | None) -> Tensor:
        """Images (first stage) or the last stage's tokens to this stage's tokens, (B, N, dim)."""
        x = self.embed(x)
        if cls_token is not None:
            x = torch.cat([cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return x + self.pos_embed


def _adapt_state_dict(model: BinaryVisionTransformer, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before loading: renames the authors' names to ours, prepares the binary layers for latent or packed weights, and
    resamples position embeddings of another image size.

    It runs on every `load_state_dict`, so that timm's `checkpoint_path=` and `local-dir:` take such files as they are.
    """
    if prefix:
        return
    if has_authors_names(state_dict):
        renamed = from_authors_names(state_dict, [len(stage.blocks) for stage in model.stages])
        state_dict.clear()
        state_dict.update(renamed)
    prepare_binary_weights(model, state_dict)
    for index, stage in enumerate(model.stages):
        name = f"stages.{index}.pos_embed"
        if name not in state_dict or state_dict[name].shape == stage.pos_embed.shape:
            continue
        # Only a square grid (after the CLS token) can be resampled; loading refuses anything else.
        tokens = state_dict[name].shape[1] - model.num_prefix_tokens
        if math.isqrt(tokens) ** 2 == tokens:
            state_dict[name] = resample_abs_pos_embed(
                state_dict[name], [stage.grid_size] * 2, num_prefix_tokens=model.num_prefix_tokens
            )
