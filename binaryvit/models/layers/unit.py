"""A binary linear layer with what always surrounds it, and several of them at once."""

from torch import Tensor, nn

from binaryvit.errors import BinaryViTError
from binaryvit.models.layers.binary import BinaryActivation, BinaryLinear
from binaryvit.models.layers.tokens import RPReLU, TokenBatchNorm, add_shortcut
from binaryvit.models.ops.choice import step_of
from binaryvit.models.ops.reference import UnitParameters
from binaryvit.models.ops.synchronized import SynchronizedBatchNorm, normalize, track
from binaryvit.models.quantizers import at_least_float32


class BinaryUnit(nn.Module):
    """A binary linear layer as BinaryViT always uses it: RPReLU(BN(BinLinear(sign(x + b))) + shortcut(x)).

    Maps (B, N, in_features) to (B, N, out_features), one of the two widths a multiple of the other. The shortcut
    carries the unshifted, real-valued x.

    Raises BinaryViTError for other widths.
    """

    def __init__(self, in_features: int, out_features: int, weight_bits: int, activation_bits: int):
        super().__init__()
        narrow, wide = sorted((in_features, out_features))
        if wide % narrow:
            raise BinaryViTError(
                f"A binary unit can't map {in_features} channels to {out_features}: its shortcut needs one of the two "
                "to be a multiple of the other."
            )
        self.binarize = BinaryActivation(in_features, activation_bits)
        self.linear = BinaryLinear(in_features, out_features, weight_bits, activation_bits)
        self.norm = TokenBatchNorm(out_features)
        self.act = RPReLU(out_features)

    def forward(self, x: Tensor) -> Tensor:
        parameters = self.parameters_in_order() if self._has_its_own_parts() else None
        step = parameters and step_of(self, parameters, x)
        if step is None:
            return self.act(add_shortcut(self.norm(self.linear(self.binarize(x))), x))
        tokens = at_least_float32(x).flatten(0, -2)
        y, mean, variance = step(tokens, parameters, self.norm.batch_norm.eps)
        track(self.norm.batch_norm, mean, variance, len(y))
        return y.unflatten(0, x.shape[:-1])

    def _has_its_own_parts(self) -> bool:
        """Whether no part was replaced, subclassed or parametrized: a step would compute as if it were not."""
        parts = {
            self.binarize: BinaryActivation,
            self.linear: BinaryLinear,
            self.norm: TokenBatchNorm,
            self.act: RPReLU,
        }
        return all(type(part) is kind for part, kind in parts.items())

    def parameters_in_order(self) -> UnitParameters:
        """All of the unit's parameters, by role."""
        norm, act = self.norm.batch_norm, self.act
        return UnitParameters(
            self.binarize.shift, self.linear.weight, norm.weight, norm.bias, act.shift_in, act.slope, act.shift_out
        )


def apply_units(*units: tuple[BinaryUnit, Tensor]) -> list[Tensor]:
    """Applies each binary unit to its input; if their norms are synchronized, with one communication for all.

    In the latter case hooks on a unit and on its norm are not called, those on its other modules are. The processes
    would wait for each other forever if one that is watched communicated more often than the rest.
    """
    norms = [unit.norm.batch_norm for unit, _ in units]
    if not all(isinstance(norm, SynchronizedBatchNorm) and norm.training for norm in norms):
        return [unit(x) for unit, x in units]
    products = [unit.linear(unit.binarize(x)) for unit, x in units]
    normalized = normalize([at_least_float32(product).flatten(0, -2) for product in products], norms)
    return [
        unit.act(add_shortcut(y.unflatten(0, x.shape[:-1]), x)) for (unit, x), y in zip(units, normalized, strict=True)
    ]
