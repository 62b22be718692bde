"""Plots of the failure analysis, and where the query tokens look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from cirlib.figures import plots as figures
from cirlib.figures import failure_plots as plots


def texts(figure: Figure) -> list[str]:
    return [" ".join(text.get_text().split()) for text in figure.findobj(Text) if text.get_text()]


def groups(*names: str) -> pd.DataFrame:
    count = len(names)
    numbers = {"queries": [10] * count, "value": np.linspace(0.2, 0.8, count)}
    return pd.DataFrame({"group": names} | numbers).assign(ci_low=0.1, ci_high=0.9, chance=0.05)


def reasons() -> pd.DataFrame:
    rows = [(m, r, 5, 0.5, 0.4, 0.6) for m in ("sum", "qformer") for r in ("ignored the edit", "near miss")]
    return pd.DataFrame(rows, columns=["method", "reason", "misses", "value", "ci_low", "ci_high"])


def exchanged() -> pd.DataFrame:
    row = {"first": "sum", "second": "qformer", "both": 50, "only_first": 5, "only_second": 35, "neither": 10}
    return pd.DataFrame([row | {"difference": 0.3, "p": 0.0001, "p_holm": 0.0002}])


def test_kinds_stand_best_first_with_their_number_and_chance() -> None:
    figure = plots.kind_bars(groups("colour", "fit"), context="here")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "fit (n = 10)".replace(" (", "  ("),
        "colour  (n = 10)",
    ]
    assert {"80.0", "20.0", "chance", "here"} <= set(texts(figure))


def test_what_is_asked_has_a_panel_each() -> None:
    table = pd.concat([groups("1", "2").assign(by="words"), groups("a", "b", "c").assign(by="things")])
    figure = plots.recall_by(table)
    assert [axes.get_xlabel() for axes in figure.axes] == ["words", "things"]
    assert [len(axes.get_xticks()) for axes in figure.axes] == [2, 3]
    assert all(any(text.get_text() == "chance" for text in axes.texts) for axes in figure.axes)


def test_reasons_have_a_bar_a_method_in_its_own_colour() -> None:
    figure = plots.reason_bars(reasons())
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "sum  (10 misses)",
        "Q-Former  (10 misses)",
    ]
    from matplotlib.colors import to_hex

    assert to_hex(axes.containers[1][0].get_facecolor()) == figures.METHODS["qformer"][1].lower()


def test_exchanges_say_counts_difference_and_p() -> None:
    said = texts(plots.exchange_bars(exchanged()))
    assert {"50", "5", "35", "10"} <= set(said)
    assert any("+30.0 points, p < 0.001" in text for text in said)


def test_confusions_have_a_panel_an_attribute_and_say_the_share_that_is_right() -> None:
    table = pd.DataFrame([[3, 1], [0, 4]], index=["red", "blue"], columns=["red", "blue"])
    figure = plots.confusion_maps({"colour": table, "second_colour": table.iloc[:1, :1]})
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["colour: 87.5 % right", "second colour: 100.0 % right"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["75", "25", "100"]
    with pytest.raises(ValueError, match="needs attributes"):
        plots.confusion_maps({})


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.kind_bars(groups("a", "b")),
        lambda: plots.recall_by(groups("a").assign(by="x")),
        lambda: plots.reason_bars(reasons()),
        lambda: plots.exchange_bars(exchanged()),
        lambda: plots.confusion_maps({"c": pd.DataFrame([[1]], index=["x"], columns=["x"])}),
    ],
    ids=["kinds", "asked", "reasons", "exchanges", "confusions"],
)
def test_the_same_data_give_the_same_bytes_and_words(draw, tmp_path: Path) -> None:
    for name in ("first.png", "second.png"):
        figures.save(draw(), tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert len(figures.alt_text(draw())) > 30
