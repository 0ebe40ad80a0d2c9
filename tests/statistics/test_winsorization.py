from __future__ import annotations

import numpy as np
import pytest

from neuroweaver.statistics.winsorization import Caps, calibrated


def test_values_beyond_the_caps_count_as_the_caps():
    assert Caps(0.0, 10.0).apply([-5.0, 3.0, 12.0]).tolist() == [0.0, 3.0, 10.0]
    assert Caps(upper=10.0).apply([-5.0, 12.0]).tolist() == [-5.0, 10.0]
    assert Caps().apply([-5.0, 12.0]).tolist() == [-5.0, 12.0]


def test_caps_are_quantiles_of_the_units():
    caps = calibrated(np.arange(1000.0), 0.01, 0.99)

    assert caps == Caps(pytest.approx(9.99), pytest.approx(989.01))


def test_without_units_there_are_no_caps():
    assert calibrated([], 0.01, 0.99) == Caps()


def test_a_cap_that_would_leave_nothing_to_measure_is_left_out():
    rare = np.zeros(1000)
    rare[:5] = 50.0

    assert calibrated(rare, None, 0.99) == Caps()
    assert calibrated(-rare, 0.01, None) == Caps()
    assert calibrated(np.full(1000, 3.0), 0.01, 0.99) == Caps()
