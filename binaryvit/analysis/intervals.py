"""How exact a share is that was measured on a limited number of images."""

import math

_Z = 1.959964  # standard deviations of a normal distribution that hold 95% of it


def wilson_interval(correct: float, images: int) -> tuple[float, float]:
    """The 95% interval of an accuracy, both ends in percent, from the number of images and of right ones among them.

    Wilson's (1927) interval for a binomial proportion p = correct / images, with z = 1.96:

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Unlike p +- z sqrt(p (1 - p) / n) it holds near 0 and 100% and for few images. It says what the choice of images
    explains, and nothing about chance in training.
    """
    p, spread = correct / images, _Z**2 / images
    middle = (p + spread / 2) / (1 + spread)
    half = math.sqrt(p * (1 - p) / images + (spread / 2) ** 2 / _Z**2) * _Z / (1 + spread)
    return 100 * min(p, middle - half), 100 * max(p, middle + half)  # at 0 and 1 rounding would leave p outside
