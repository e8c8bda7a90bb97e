"""Binomial intervals against what defines them."""

import math
from statistics import NormalDist

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from binaryvit.analysis.intervals import wilson_interval


@example((10, 10))
@example((0, 1000))
@given(st.integers(1, 2000).flatmap(lambda images: st.tuples(st.integers(0, images), st.just(images))))
def test_at_both_ends_the_measured_share_is_196_deviations_away(counts):
    correct, images = counts
    measured, deviations = correct / images, NormalDist().inv_cdf(0.975)
    ends = [end / 100 for end in wilson_interval(correct, images)]
    assert ends[0] <= measured <= ends[1]
    for end in ends:  # Wilson's are the shares for which the measured one is just not too unlikely
        away = deviations * math.sqrt(max(0, end * (1 - end)) / images)
        assert abs(measured - end) == pytest.approx(away, abs=1e-6)


def test_the_textbooks_example():
    assert wilson_interval(0, 10) == pytest.approx((0, 27.75), abs=0.01)
    assert wilson_interval(81, 263) == pytest.approx((25.53, 36.62), abs=0.01)  # Newcombe 1998, method 3
