"""What the figures say: texts, panels, frames, whiskers; and that a saved figure is the same to the byte."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from cirlib.figures import plots as figures, image_grids as sheets
from cirlib.figures.image_grids import RetrievalRow


def texts(figure: Figure) -> list[str]:
    """Every text of the figure, the wrapped ones as one line."""
    return [" ".join(text.get_text().split()) for text in figure.findobj(Text) if text.get_text()]


def whiskers(axes: Axes) -> list[list[float]]:
    """[low, high] of each interval drawn, in per cent."""
    lines = [found for found in axes.collections if found.get_label() == "_interval"]
    ends = [segment for found in lines for segment in found.get_segments()]
    return [sorted(end[:, np.ptp(end, axis=0).argmax()]) for end in ends]


def summary_of(methods: tuple[str, ...] = ("sum", "qformer"), **changes: Any) -> pd.DataFrame:
    """Recall@1 and @10 of dress, shirt and the mean; the same numbers in every category but the gallery."""
    rows = []
    for i, method in enumerate(methods):
        for category, gallery in (("mean", 450), ("dress", 400), ("shirt", 500)):
            for k, value in ((1, 0.2 + 0.1 * i), (10, 0.4 + 0.1 * i)):
                numbers = {"value": value, "ci_low": value - 0.05, "ci_high": value + 0.03}
                names = {"method": method, "category": category, "metric": f"recall@{k}"}
                counts = {"queries": 1200, "gallery": gallery, "chance": k / gallery}
                rows.append(names | numbers | counts | {"protocol": "original", "complete": True} | changes)
    return pd.DataFrame(rows)


def intervals(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns | {"value": [0.3, 0.5], "ci_low": [0.25, 0.4], "ci_high": [0.4, 0.55]})


def protocols() -> pd.DataFrame:
    rules = [
        "original gallery, reference kept, captions joined: and",
        "val split gallery, reference removed, captions: first",
    ]
    return intervals(protocol=["original", "VAL split"], rule=rules, chance=[0.01, 0.02])


def history_of_runs() -> pd.DataFrame:
    recalls = {"qformer": [np.nan, 0.6, 0.5], "plain": [0.1, 0.2, 0.3]}
    rows = [
        {"run": run, "epoch": epoch, "loss": 3.0 - epoch, "dev/recall@10": recall}
        for run, values in recalls.items()
        for epoch, recall in enumerate(values)
    ]
    return pd.DataFrame(rows)


def dpo_history(steps: int = 5) -> pd.DataFrame:
    step = np.arange(steps)
    rewards = {"chosen_reward": 0.1 * step, "rejected_reward": -0.2 * step, "margin": 0.3 * step}
    return pd.DataFrame({"step": step, "loss": 0.7 / (1 + step), "accuracy": 0.75} | rewards)


def numbers_of_papers() -> pd.DataFrame:
    rows = [
        ("ours_unrun", "ours", np.nan, "original"),
        ("SPRC", "published", 0.547, "VAL split"),
        ("Retrieval-DPO", "paper", 0.0002, "not stated"),
        ("Q-Former", "paper", 0.454, "not stated"),
    ]
    return pd.DataFrame(rows, columns=["method", "source", "recall@10", "protocol"])


@pytest.fixture
def images(tmp_path: Path, write_image: Callable[..., Path]) -> list[Path]:
    """Six images: five tall ones, one wide."""
    sizes = [(40, 60)] * 5 + [(90, 30)]
    return [write_image(tmp_path / f"{i}.png", seed=i, size=size) for i, size in enumerate(sizes)]


# ---------------------------------------------------------------------------------------------------- bars


def test_recall_bars_show_values_intervals_and_chance_of_each_category() -> None:
    figure = figures.recall_bars(summary_of())
    (axes,) = figure.axes
    assert [bar.get_height() for bars in axes.containers for bar in bars] == pytest.approx([40] * 3 + [50] * 3)
    assert np.array(whiskers(axes)) == pytest.approx(np.array([[35, 43]] * 3 + [[45, 53]] * 3))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["dress", "shirt", "mean"]
    (chance,) = (lines for lines in axes.collections if lines.get_label() == "chance")
    assert [segment[0, 1] for segment in chance.get_segments()] == pytest.approx([2.5, 2.0, 1000 / 450])
    assert chance.get_linestyle()[0][1] is not None  # dashed
    shown = " ".join(texts(figure))
    for text in (
        "Recall@10",
        "Q-Former",
        "protocol: original",
        "1,200 queries",
        "400–500 gallery",
        "95 %",
        "40.0",
    ):
        assert text in shown


def test_recall_bars_pick_and_order_methods_and_keep_their_colours() -> None:
    summary = summary_of(("sum", "slerp", "qformer"))
    both = figures.recall_bars(summary, methods=["qformer", "sum"]).axes[0]
    every = figures.recall_bars(summary).axes[0]
    assert [bars.get_label() for bars in both.containers] == ["Q-Former", "sum"]
    colours = {bars.get_label(): bars[0].get_facecolor() for bars in every.containers}
    assert {bars.get_label(): bars[0].get_facecolor() for bars in both.containers}.items() <= colours.items()


def test_recall_bars_mark_an_incomplete_gallery() -> None:
    summary = summary_of()
    summary.loc[summary["category"] == "dress", "complete"] = False
    shown = texts(figures.recall_bars(summary))
    assert "dress *" in shown and "shirt" in shown
    assert any("* gallery incomplete" in text for text in shown)


def test_recall_bars_leave_out_a_missing_bar() -> None:
    summary = summary_of()
    gone = (summary["method"] == "qformer") & (summary["category"] == "dress")
    axes = figures.recall_bars(summary[~gone]).axes[0]
    assert sum(np.isfinite(bar.get_height()) for bars in axes.containers for bar in bars) == 5


def test_recall_bars_refuse_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=re.escape("no metric recall@7; the summary has recall@1, recall@10")):
        figures.recall_bars(summary_of(), "recall@7")
    with pytest.raises(ValueError, match="no method dpo; the summary has sum, qformer"):
        figures.recall_bars(summary_of(), methods=["dpo"])
    mixed = pd.concat([summary_of(), summary_of(("slerp",), protocol="val_split")])
    with pytest.raises(ValueError, match="one protocol, the summary has original, val_split"):
        figures.recall_bars(mixed)
    assert figures.recall_bars(mixed, methods=["slerp"])
    with pytest.raises(ValueError, match="two values of sum / mean / recall@10"):
        figures.recall_bars(pd.concat([summary_of(), summary_of(("sum",))]))
    with pytest.raises(ValueError, match="fractions of 1 in value; it has up to 45"):
        figures.recall_bars(summary_of(value=45.0))


def test_before_after_joins_the_two_recalls_of_each_k() -> None:
    summary = summary_of()
    summary.loc[summary["method"] == "qformer", ["value", "ci_low", "ci_high"]] = [0.0002, 0.0, 0.001]
    figure = figures.recall_before_after(summary, "sum", "qformer")
    (axes,) = figure.axes
    drawn = {found.get_label(): found for found in axes.collections}
    assert sorted(drawn["sum"].get_offsets()[:, 0]) == pytest.approx([20, 40])
    assert sorted(drawn["Q-Former"].get_offsets()[:, 0]) == pytest.approx([0.02, 0.02])
    assert sorted(drawn["chance"].get_offsets()[:, 0]) == pytest.approx([100 / 450, 1000 / 450])
    assert [sorted(s[:, 0]) for s in drawn["_change"].get_segments()] == [[0.02, 40.0], [0.02, 20.0]]
    assert np.array(whiskers(axes)) == pytest.approx(np.array([[35, 43], [15, 23], [0, 0.1], [0, 0.1]]))
    for text in ("sum → Q-Former", "Recall@1", "Recall@10", "40.0 %", "0.02 %", "2.2 %", "before", "chance"):
        assert text in texts(figure)


def test_before_after_of_one_category() -> None:
    figure = figures.recall_before_after(summary_of(), "sum", "qformer", category="dress")
    assert "2.5 %" in texts(figure)
    with pytest.raises(ValueError, match="category 'hat'"):
        figures.recall_before_after(summary_of(), "sum", "qformer", category="hat")
    with pytest.raises(ValueError, match="no method dpo"):
        figures.recall_before_after(summary_of(), "sum", "dpo")


def test_protocol_bars_keep_the_order_and_show_intervals() -> None:
    figure = figures.protocol_bars(protocols())
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["original  (original · kept · and)", "VAL split  (val split · removed · first)"]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([30, 50])
    assert np.array(whiskers(axes)) == pytest.approx(np.array([[25, 40], [40, 55]]))
    (chance,) = [lines for lines in axes.collections if lines.get_label() == "chance"]
    assert [path.vertices[0, 0] for path in chance.get_paths()] == pytest.approx([1, 2])
    assert {"30.0", "50.0", "Recall@10 (%)"} <= set(texts(figure))


def test_paper_vs_ours_groups_sources_and_says_what_was_not_run() -> None:
    figure = figures.paper_vs_ours(numbers_of_papers())
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["Q-Former", "Retrieval-DPO", "SPRC", "ours unrun"]
    shown = texts(figure)
    for text in (
        "not run",
        "0.02",
        "45.4",
        "VAL split",
        "original",
        "the paper",
        "other publications",
        "this study",
    ):
        assert text in shown
    assert len({to_hex(bar.get_facecolor()) for bar in axes.patches}) == 3


def test_paper_vs_ours_knows_its_sources() -> None:
    with pytest.raises(ValueError, match="sources paper, published, ours, ours elsewhere, got blog"):
        figures.paper_vs_ours(numbers_of_papers().replace("published", "blog"))


# -------------------------------------------------------------------------------------------------- curves


def test_learning_curves_mark_the_best_epoch_of_each_run() -> None:
    figure = figures.learning_curves(history_of_runs())
    loss, dev = figure.axes
    best = [found.get_offsets().tolist() for found in dev.collections if found.get_label() == "_best"]
    assert best == [[[1.0, 60.0]], [[2.0, 30.0]]]
    assert len(loss.lines) == len(dev.lines) == 2
    assert dev.lines[0].get_xdata().tolist() == [1, 2]  # the epoch that was not measured is left out
    shown = texts(figure)
    assert "Q-Former (best: epoch 1, 60.0 %)" in shown and "plain (best: epoch 2, 30.0 %)" in shown


def test_learning_curves_without_any_dev_recall_mark_nothing() -> None:
    figure = figures.learning_curves(history_of_runs().assign(**{"dev/recall@10": np.nan}))
    assert not any(axes.collections for axes in figure.axes)


def test_learning_curves_do_not_depend_on_the_index() -> None:
    history = history_of_runs()
    figure = figures.learning_curves(history.set_index(np.zeros(len(history), dtype=int)))
    assert "Q-Former (best: epoch 1, 60.0 %)" in texts(figure)


def test_dpo_curves_have_three_panels() -> None:
    figure = figures.dpo_curves(dpo_history())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "reward", "accuracy (%)"]
    labels = [line.get_label() for line in figure.axes[1].lines]
    assert labels[:3] == ["chosen", "rejected", "margin"]
    assert figure.axes[2].lines[0].get_ydata().tolist() == [75.0] * 5


def test_long_dpo_curves_are_smoothed_over_the_raw_values() -> None:
    raw, smooth = figures.dpo_curves(dpo_history(200)).axes[0].lines
    assert raw.get_label() == "_raw" and raw.get_alpha() < 0.5
    assert raw.get_ydata()[0] == 0.7 > smooth.get_ydata()[0]


def test_rank_histogram_accumulates_ranks_over_a_log_axis() -> None:
    figure = figures.rank_histogram({"sum": [1, 1, 3, 100], "qformer": np.ones(7)}, gallery_size=100)
    (axes,) = figure.axes
    lines = {line.get_label(): dict(zip(*line.get_data(), strict=True)) for line in axes.lines}
    curve = lines["sum  (median rank 2)"]
    assert [curve[k] for k in (1, 2, 3, 99, 100)] == [50, 50, 75, 75, 100]
    assert set(lines["Q-Former  (median rank 1)"].values()) == {100}
    assert [lines["chance"][k] for k in (1, 10, 100)] == [1, 10, 100]
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize("ranks", [[], [0, 1], [1, 101], [np.nan]])
def test_rank_histogram_refuses_impossible_ranks(ranks: list[float]) -> None:
    with pytest.raises(ValueError, match="ranks of sum from 1 to gallery_size=100"):
        figures.rank_histogram({"sum": ranks}, gallery_size=100)


# --------------------------------------------------------------------------------------------- every figure

FROM_TABLES: dict[str, tuple[Callable[[pd.DataFrame], Figure], pd.DataFrame, str]] = {
    "recall_bars": (figures.recall_bars, summary_of(), "ci_low"),
    "recall_before_after": (
        lambda t: figures.recall_before_after(t, "sum", "qformer"),
        summary_of(),
        "chance",
    ),
    "protocol_bars": (figures.protocol_bars, protocols(), "protocol"),
    "paper_vs_ours": (figures.paper_vs_ours, numbers_of_papers(), "protocol"),
    "learning_curves": (figures.learning_curves, history_of_runs(), "dev/recall@10"),
    "dpo_curves": (figures.dpo_curves, dpo_history(), "margin"),
}


@pytest.mark.parametrize("name", FROM_TABLES)
def test_a_missing_column_is_one_clear_error(name: str) -> None:
    draw, table, column = FROM_TABLES[name]
    have = ", ".join(other for other in table.columns if other != column)
    message = f"{name} needs the column(s) {column}; the table has: {have}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draw(table.drop(columns=column))


@pytest.mark.parametrize("name", FROM_TABLES)
def test_an_empty_table_is_an_error(name: str) -> None:
    draw, table, _ = FROM_TABLES[name]
    with pytest.raises(ValueError, match=f"{name} got a table without rows"):
        draw(table.iloc[:0])


@pytest.mark.parametrize("name", FROM_TABLES)
def test_tables_are_left_as_they_were(name: str) -> None:
    draw, table, _ = FROM_TABLES[name]
    before = table.copy(deep=True)
    draw(table)
    pd.testing.assert_frame_equal(table, before)


@pytest.fixture(params=[*FROM_TABLES, "rank_histogram", "triplet_grid", "retrieval_rows"])
def draw(request: pytest.FixtureRequest, images: list[Path]) -> Callable[[], Figure]:
    """Each figure in turn, from small data."""
    row = RetrievalRow(images[0], "is red", images[:5], [True] + [False] * 4, images[0], 1, "a title")
    others: dict[str, Callable[[], Figure]] = {
        "rank_histogram": lambda: figures.rank_histogram({"sum": [1, 5, 40]}, gallery_size=50),
        "triplet_grid": lambda: sheets.triplet_grid([(images[0], "is red", images[1])]),
        "retrieval_rows": lambda: sheets.retrieval_grid([row]),
    }
    if request.param in others:
        return others[request.param]
    make, table, _ = FROM_TABLES[request.param]
    return lambda: make(table)


def test_saved_figures_are_the_same_to_the_byte(draw: Callable[[], Figure], tmp_path: Path) -> None:
    figure = draw()
    figures.save(figure, tmp_path / "new" / "first.png")
    figures.save(figure, tmp_path / "second.png")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.facecolor": "red"}):
        figures.save(draw(), tmp_path / "third.png")
    first = (tmp_path / "new" / "first.png").read_bytes()
    assert (tmp_path / "second.png").read_bytes() == first
    assert (tmp_path / "third.png").read_bytes() == first
    with Image.open(tmp_path / "second.png") as image:
        assert set(image.info) <= {"dpi", "Description", "transparency"}  # no date, no software
        assert image.info["Description"] == figures.alt_text(figure)
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)


def test_figures_are_drawn_without_a_warning_and_leave_no_trace(
    draw: Callable[[], Figure], recwarn: pytest.WarningsRecorder
) -> None:
    before = dict(mpl.rcParams)
    figure = draw()
    figure.canvas.draw()
    assert not [str(warning.message) for warning in recwarn]
    assert plt.get_fignums() == []
    assert {k: v for k, v in mpl.rcParams.items() if k != "backend"} == {
        k: v for k, v in before.items() if k != "backend"
    }


def test_save_writes_png_only(tmp_path: Path) -> None:
    figure = figures.rank_histogram({"sum": [1]}, gallery_size=5)
    with pytest.raises(ValueError, match=re.escape("saved as .png, not as 'ranks.pdf'")):
        figures.save(figure, tmp_path / "ranks.pdf")


def test_theme_sets_a_font_that_is_always_there() -> None:
    with mpl.rc_context():
        figures.theme()
        assert mpl.rcParams["font.family"] == ["DejaVu Sans"]
        assert not mpl.rcParams["axes.spines.top"]
