"""Numbers as people read them."""

import math

import pytest

from cirlib.study.units import percent, points


@pytest.mark.parametrize(
    ("fraction", "text"), [(0, "0.0"), (1, "100.0"), (0.5175, "51.7"), (0.00996, "1.00"), (0.0002, "0.02")]
)
def test_percent(fraction, text):
    assert percent(fraction) == text


def test_a_number_from_a_file_reads_as_the_number_itself():
    assert percent(0.5175000001) == percent(0.5175)
    assert percent(math.nan, " %") == points(math.nan) == "not run"


@pytest.mark.parametrize(("difference", "text"), [(0.05, "+5.0"), (-0.05, "−5.0"), (-0.0004, "0.0"), (0, "0.0")])
def test_points(difference, text):
    assert points(difference) == text
