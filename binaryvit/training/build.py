"""From a configuration to a model: its construction, the images it expects, its compiled form, and its stored one."""

from pathlib import Path

import timm
import torch
from timm.data import resolve_data_config
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from binaryvit.config import TrainingConfig
from binaryvit.errors import BinaryViTError
from binaryvit.models.description import Preprocessing
from binaryvit.models.layers import binary_layers
from binaryvit.models.weights_file import save_inference_weights


def model_arguments(config: TrainingConfig, num_classes: int) -> dict:
    """The arguments of `timm.create_model`, besides the variant, that rebuild a run's model for inference."""
    arguments = {**config.model_args, "num_classes": num_classes}
    if config.image_size is not None:
        arguments["img_size"] = config.image_size
    return arguments


def store_weights(model: nn.Module, config: TrainingConfig, class_names: tuple[str, ...], path: Path) -> None:
    """Stores a run's model for inference, as `model_arguments` rebuilds it."""
    save_inference_weights(
        model,
        path,
        config.variant,
        model_arguments(config, len(class_names)),
        getattr(torch, config.weights_dtype),
        class_names=class_names,
        preprocessing=Preprocessing.of(model, config.eval_crop),
    )


def create_model(config: TrainingConfig, num_classes: int) -> nn.Module:
    """The model a run trains, with the random weights its seed gives.

    The caller's random state is kept. Raises `BinaryViTError` when the arguments don't fit the variant.
    """
    regularization = {
        "drop_rate": config.dropout,
        "attn_drop_rate": config.attention_dropout,
        "drop_path_rate": config.drop_path,
    }
    arguments = model_arguments(config, num_classes) | {name: rate for name, rate in regularization.items() if rate > 0}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        try:
            model = timm.create_model(config.variant, **arguments)
        except BinaryViTError:
            raise
        except Exception as error:  # whatever a constructor does with arguments it does not foresee
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise BinaryViTError(
                f"{config.variant} cannot be built with {given}: {type(error).__name__}: {error}."
            ) from error
    if config.latent_scale != 1.0:
        with torch.no_grad():
            for layer in binary_layers(model).values():
                layer.weight *= config.latent_scale
    return model


def pretrained_model(name: str) -> nn.Module:
    """timm's model of that name with its published weights.

    Raises BinaryViTError when there are none, or they can't be fetched.
    """
    if not timm.is_model_pretrained(name):
        raise BinaryViTError(
            f"{name} has no pretrained weights in timm: choose another name, or give a local checkpoint of it."
        )
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the hub's client meets on a machine without network
        raise BinaryViTError(
            f"The pretrained weights of {name} could not be fetched ({error}): connect to the network once, or give a "
            "local checkpoint."
        ) from error


def input_settings(
    model: nn.Module, image_size: int | None = None
) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]]:
    """Input size (3, height, width) of a model, and the mean and deviation per channel that normalize its images.

    `image_size` is the one it was built with; None: the variant's own.
    """
    settings = resolve_data_config({}, model=model)
    size = settings["input_size"] if image_size is None else (3, image_size, image_size)
    return size, settings["mean"], settings["std"]


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a model: those of its stages, or timm's `blocks` of a columnar model."""
    stages = getattr(model, "stages", [model])
    return [block for stage in stages for block in getattr(stage, "blocks", [])]


def compile_blocks(model: nn.Module) -> nn.Module:
    """Compiles each transformer block of `model`, in place; blocks of equal shapes and rates share their compiled code.

    Shapes are compiled as they are: with dynamic shapes, a pyramid's second stage would recompile everything into
    slower code.
    """
    # Each stage's shape, in training and in evaluation, is one more compilation of the same function; and where a block
    # drops paths at a rate of its own, which is a constant of the code, each block is.
    blocks = blocks_of(model)
    limit = max(16 * len(getattr(model, "stages", [model])), 2 * len(blocks))
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for block in blocks:
        block.compile(dynamic=False)
    return model


def data_parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """A model that several processes train, each on images of its own; its batch norms are synchronized already."""
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        forward_sync_buffers=False,  # the statistics are synchronized, and so the same everywhere
        gradient_as_bucket_view=True,
    )
