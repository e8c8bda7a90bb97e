"""Binary vision transformers after BinaryViT (Le & Li, CVPRW 2023); importing it registers the models with timm."""

from binaryvit import model as _model  # noqa: F401 - registers the variants with timm

__version__ = "0.1.0"
