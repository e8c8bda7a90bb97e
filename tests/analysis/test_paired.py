"""Paired differences: their coverage, their limits, and what they refuse."""

from statistics import mean, variance

import numpy as np
import pytest
from scipy import stats

from binaryvit.analysis.paired import paired_difference
from binaryvit.errors import BinaryViTError


def test_one_seed_is_the_paired_test_of_two_shares():
    """With b images that only `after` gets right and c that only `before` does (McNemar's numbers)."""
    n, b, c = 1000, 60, 40
    before, after = np.zeros(n, bool), np.zeros(n, bool)
    after[:b] = True
    before[b : b + c] = True
    before[500:] = after[500:] = True
    found = paired_difference([before], [after])
    variance = (b + c) / n - ((b - c) / n) ** 2
    half = 1.9623 * np.sqrt(variance / (n - 1))  # Student's with 999 degrees of freedom
    assert found.points == pytest.approx(2.0) and found.seeds == 1
    assert (found.low, found.high) == pytest.approx((2 - 100 * half, 2 + 100 * half), abs=1e-3)
    assert found.is_resolved == (100 * half < 2)
    assert str(found) == "+2.00 (+0.04 to +3.96)"


def test_few_seeds_that_disagree_resolve_nothing():
    rng = np.random.default_rng(0)
    right = [rng.random(5000) < share for share in (0.50, 0.50, 0.50)]
    better = [rng.random(5000) < share for share in (0.51, 0.55, 0.53)]
    assert not paired_difference(right, better).is_resolved
    assert paired_difference(right[:1], better[1:2]).is_resolved, "one pair alone does not know of the seeds"
    equal = paired_difference(right, right)
    assert (equal.points, equal.low, equal.high) == (0, 0, 0) and not equal.is_resolved


@pytest.mark.parametrize(
    ("seeds", "by_seed", "share"),
    [(3, 0.0, (0.97, 1)), (3, 0.1, (0.91, 0.97)), (3, 0.5, (0.89, 0.96)), (2, 0.0, (0.95, 1)), (2, 0.3, (0.82, 0.91))],
)
def test_intervals_hold_what_they_promise(seeds, by_seed, share):
    """Models whose accuracy varies by seed and whose errors lie on the same hard images."""
    rng, inside, trials = np.random.default_rng(1), 0, 400
    for _ in range(trials):
        hard = rng.normal(size=400)
        before, after = (
            [rng.normal(0, by_seed) + hard + rng.normal(size=400) > 0 for _ in range(seeds)] for _ in range(2)
        )
        found = paired_difference(before, after)
        inside += found.low <= 0 <= found.high
    assert share[0] <= inside / trials <= share[1]


def test_other_images_or_seeds_are_refused():
    images = np.ones(5, bool)
    for before, after in (([images], [images, images]), ([images], [images[:4]])):
        with pytest.raises(BinaryViTError, match="same seeds and the same evaluation images"):
            paired_difference(before, after)


def test_the_interval_is_that_of_the_formula():
    d = [[1, 0, 0, 1], [0, 0, -1, 1], [1, 1, 0, 1]]
    before = [np.array([max(0, -x) for x in row]) for row in d]
    after = [np.array([max(0, x) for x in row]) for row in d]
    seeds = variance([mean(row) for row in d]) / 3
    images = variance([mean(column) for column in zip(*d, strict=True)]) / 4
    freedom = (seeds + images) ** 2 / (seeds**2 / 2 + images**2 / 3)
    half = stats.t.ppf(0.975, freedom) * (seeds + images) ** 0.5
    found = paired_difference(before, after)
    assert (found.low, found.high) == pytest.approx((100 * (5 / 12 - half), 100 * (5 / 12 + half)))
