"""Whether a classifier is right as often as it is sure."""

import numpy as np
import pytest

from hgnetv2_hf.evaluation.calibration import expected_calibration_error, reliability


def test_calibration_error_is_that_of_guo_et_al():
    """Their formula and their program's bins, ``low < confidence <= high``, written out."""
    random = np.random.RandomState(0)
    confidences = np.concatenate([random.uniform(0.1, 1, 500), [1.0, 0.2, 0.4, 1 / 15, 2 / 15]])
    right = random.uniform(size=len(confidences)) < confidences**2
    expected, edges = 0.0, np.linspace(0, 1, 16)
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (confidences > low) & (confidences <= high)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidences[inside].mean())
    rows = reliability(confidences, right)
    assert expected_calibration_error(rows) == pytest.approx(expected, abs=1e-12)
    assert len(rows) == 15 and sum(row["images"] for row in rows) == 505


def test_a_classifier_that_is_right_as_often_as_it_is_sure_has_no_error():
    assert expected_calibration_error(reliability([0.75] * 4, [True, True, True, False])) == pytest.approx(0)
    assert expected_calibration_error(reliability([1.0, 1.0], [False, False])) == 1.0
    assert expected_calibration_error(reliability([], [])) is None
    assert reliability([0.0], [True])[0]["accuracy"] == 1.0
