"""The unit in which numbers are shown: files and functions hold fractions of 1, tables, figures and prose per cent."""

import math


def percent(fraction: float, unit: str = "") -> str:
    """12.3 for 0.123, two decimals below one per cent, where chance lives, and "not run" for NaN.

    >>> percent(0.123), percent(0.0012, " %"), percent(math.nan)
    ('12.3', '0.12 %', 'not run')
    """
    if math.isnan(fraction):
        return "not run"
    fraction = round(fraction, 6)  # as in summary.csv
    return (f"{100 * fraction:.2f}" if 0 < fraction < 0.01 else f"{100 * fraction:.1f}") + unit


def points(difference: float) -> str:
    """+1.2 for a difference of 0.012, −0.3, 0.0 for what rounds to nothing, and "not run" for NaN.

    >>> points(0.0123), points(-0.0004), points(math.nan)
    ('+1.2', '0.0', 'not run')
    """
    text = f"{100 * difference:+.1f}".replace("-", "−")
    return "not run" if math.isnan(difference) else "0.0" if text[1:] == "0.0" else text
