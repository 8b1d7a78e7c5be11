import math

import numpy as np
import pytest

from defeat.report.statistics import of_resamples, over_seeds

# Two-sided 95 % points of Student's t, as in any table of it (NIST/SEMATECH e-Handbook, 1.3.6.7.2).
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 29: 2.045, 100: 1.984}


@pytest.mark.parametrize(("freedom", "bound"), TABLE.items())
def test_the_interval_is_that_of_the_tables(freedom, bound):
    values = np.random.default_rng(freedom).normal(0.3, 0.02, freedom + 1)
    estimate = over_seeds(values.tolist())
    standard_error = values.std(ddof=1) / math.sqrt(freedom + 1)
    assert (estimate.high - estimate.value) / standard_error == pytest.approx(bound, abs=6e-4)
    assert estimate.value - estimate.low == pytest.approx(estimate.high - estimate.value)


def test_one_seed_has_no_interval():
    estimate = over_seeds([0.25])
    assert estimate.value == 0.25
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    assert math.isnan(over_seeds([0.2, math.nan]).value)


def test_percentiles_leave_out_resamples_without_a_figure():
    values = np.append(np.arange(1001) / 1000, np.nan)
    assert of_resamples(0.4, values) == pytest.approx((0.4, 0.025, 0.975))
    assert math.isnan(of_resamples(0.4, np.full(3, np.nan)).low)
