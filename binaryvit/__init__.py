"""Binary vision transformers after BinaryViT (Le & Li, CVPRW 2023); importing it registers the models with timm."""

from binaryvit.models import convolutional, ladder, shortcuts_only  # noqa: F401 - they register the models with timm

__version__ = "0.2.0"
