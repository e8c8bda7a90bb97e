"""Binary vision transformers after BinaryViT (Le & Li, CVPRW 2023); importing it registers the models with timm."""

from binaryvit.models import ladder as _ladder  # noqa: F401 - registers the variants with timm

__version__ = "0.2.0"
