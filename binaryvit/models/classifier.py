"""From a model's last tokens to its classes, by timm's contract: pooling, dropout, a full-precision linear layer."""

import torch
from torch import Tensor, nn

from binaryvit.errors import BinaryViTError
from binaryvit.models.ops.precision import without_autocast
from binaryvit.models.shapes import check_choice


class TokenClassifier(nn.Module):
    """The end of a model whose `forward_features` gives tokens (B, N, num_features).

    A model sets the attributes, and calls `_add_head`.

    Attributes:
        num_features: channels of the tokens.
        num_prefix_tokens: how many of the first tokens have no place in the image (a CLS token).
        global_pool: "avg" averages the tokens that have a place, "token" reads the CLS token, "" takes all tokens.
        num_classes, head_drop, head: how many classes, the dropout, and the linear layer (an identity for 0 classes).
    """

    num_features: int
    num_prefix_tokens: int
    global_pool: str

    def _add_head(self, num_classes: int, drop_rate: float) -> None:
        self.head_drop = nn.Dropout(drop_rate)
        self._add_classifier(num_classes)

    def _add_classifier(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The final linear layer (an identity where num_classes is 0)."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a new one with `num_classes` outputs (0: none), and the pooling where it is given.

        Raises:
            BinaryViTError: an unknown global_pool, or "token" for a model that was built without a CLS token.
        """
        if global_pool is not None:
            check_choice("global_pool", global_pool, ("", "avg", "token"))
            if global_pool == "token" and self.num_prefix_tokens == 0:
                raise BinaryViTError(
                    "global_pool='token' needs a CLS token, and this model was built without one: choose 'avg', or "
                    "build a columnar transformer with global_pool='token'."
                )
            self.global_pool = global_pool
        like = next(self.parameters())
        self._add_classifier(num_classes)
        self.head.to(device=like.device, dtype=like.dtype).train(self.training)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Final tokens to logits (B, num_classes), or to the pooled features (B, C) with pre_logits."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(dim=1)
        x = self.head_drop(x)
        if pre_logits:
            return x
        with without_autocast(x):
            return self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
