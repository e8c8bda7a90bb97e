"""timm's image transforms as a training configuration asks for them.

All interpolation is bicubic. The transforms here map a PIL image to a uint8 tensor (3, height, width); conversion to
float, normalization and random erasing come on the model's device, for whole batches (`data.batches`).
"""

from collections.abc import Callable

import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.random_erasing import RandomErasing

from binaryvit.config import TrainingConfig

Transform = Callable[[Image.Image], torch.Tensor]


def _posterize(image: Image.Image, bits: int, **unused: object) -> Image.Image:
    return auto_augment.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


# timm's strongest posterization keeps 0 bits, a black image. Newer Pillow refuses that and would end a training run
# after some thousand images of the teacher's recipe.
auto_augment.NAME_TO_OP.update(
    {name: _posterize for name, operation in auto_augment.NAME_TO_OP.items() if operation is auto_augment.posterize}
)


def train_transform(config: TrainingConfig, input_size: tuple[int, ...], mean: tuple[float, ...]) -> Transform:
    """Random resized crop and horizontal flip, then RandAugment or colour jitter where `config` asks for them.

    Binary students use the first two alone. As in timm (and so in DeiT's recipe), colour jitter is left out when
    `auto_augment` is on. Images smaller than the model are enlarged by the crop.

    Args:
        config: the training configuration (crop_scale, horizontal_flip, color_jitter, auto_augment).
        input_size: of the model, (3, height, width).
        mean: per channel in 0..1; RandAugment fills uncovered pixels with it.
    """
    return create_transform(
        input_size,
        is_training=True,
        scale=config.crop_scale,
        hflip=config.horizontal_flip,
        color_jitter=config.color_jitter or None,
        auto_augment=config.auto_augment,
        interpolation="bicubic",
        mean=mean,
        use_prefetcher=True,
    )


def eval_transform(config: TrainingConfig, input_size: tuple[int, ...]) -> Transform:
    """Shorter side resized to floor(size / eval_crop), then the centre crop of the model's size.

    `config.eval_crop` 0.875 is ImageNet's usual 256 -> 224. With 1.0 nothing is cut from a square image: the choice for
    32x32 data, where objects fill the frame.
    """
    return create_transform(input_size, crop_pct=config.eval_crop, interpolation="bicubic", use_prefetcher=True)


def random_erasing(config: TrainingConfig) -> RandomErasing | None:
    """Random erasing (Zhong et al. 2017) of normalized images with noise per pixel, as in DeiT; None when off."""
    if not config.random_erasing:
        return None
    return RandomErasing(config.random_erasing, mode="pixel", max_count=1, device="cpu")


def normalize(
    images: torch.Tensor, mean: torch.Tensor | tuple[float, ...], std: torch.Tensor | tuple[float, ...]
) -> torch.Tensor:
    """uint8 images (batch, 3, height, width) to float32 (x / 255 - mean) / std, as torchvision's two steps do.

    Mean and deviation are given per channel; as tensors they must be on the images' device.
    """
    mean, std = (torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    return images.float().div_(255).sub_(mean).div_(std)
