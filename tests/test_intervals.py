"""Binomial intervals against scipy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from binaryvit.intervals import wilson_interval


@given(st.integers(1, 2000).flatmap(lambda images: st.tuples(st.integers(0, images), st.just(images))))
def test_the_interval_is_wilsons(counts):
    expected = binomtest(*counts).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(*counts) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-4)
