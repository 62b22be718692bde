"""What every figure guarantees: the same bytes for the same data, words for who cannot see it, and no traces."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient
from PIL import Image

from cirlib import figures
from cirlib.figures import style

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "studies" / "garments" / "results"
TABLES: dict[str, tuple[Callable[[pd.DataFrame], Figure], str]] = {  # drawn by, from a committed table
    "recall_bars": (figures.recall_bars, "summary.csv"),
    "recall_before_after": (lambda t: figures.recall_before_after(t, "text_only", "retrieval_dpo"), "summary.csv"),
    "protocol_bars": (figures.protocol_bars, "zero_shot/protocols.csv"),
    "paper_vs_ours": (figures.paper_vs_ours, "paper_vs_ours.csv"),
    "learning_curves": (figures.learning_curves, "qformer/history.csv"),
    "dpo_curves": (figures.dpo_curves, "dpo/history.csv"),
    "kind_bars": (figures.kind_bars, "failure_cases/kinds.csv"),
    "recall_by": (figures.recall_by, "failure_cases/asked.csv"),
    "reason_bars": (figures.reason_bars, "failure_cases/reasons.csv"),
    "exchange_bars": (figures.exchange_bars, "failure_cases/exchanges.csv"),
    "sweep_grid": (
        lambda t: figures.sweep_grid(t.assign(ci_low=0.0, ci_high=0.5), text_only=0.25, chance=0.01),
        "made/sweep",
    ),
    "trajectory": (figures.trajectory, "made/trajectory"),
    "mistakes": (figures.mistakes, "made/mistakes"),
    "effects": (figures.effects, "made/effects"),
    "factorial_map": (figures.factorial_map, "made/switches"),
    "recipe_gains": (figures.recipe_gains, "made/recipe"),
}

INTERVAL = {"ci_low": [0.1, 0.2], "ci_high": [0.4, 0.5]}
STATES = ["alignment", "uniformity", "effective_rank", "hubness"]
MADE = {  # tables of the DPO study, two rows each
    "sweep": {"index": "flat", "sampling": "top", "beta": [0.1, 1], "recall@10": [0.3, 0.4], **INTERVAL},
    "trajectory": {
        "step": [0, 9], "recall@10": [0.3, 0.4], **INTERVAL, "chance": 0.01, "gallery": 99,
        **dict.fromkeys(STATES, 0.5),
        **{f"rank_{share}": [share / 2, share / 3] for share in (10, 25, 50, 75, 90)},
    },
    "mistakes": {
        "mistake": ["none", "swapped"], "hits": [3, 4], "queries": 10, "recall@10": [0.3, 0.4], **INTERVAL,
        "chance": 0.01, "verdict": "above chance",
    },
    "effects": {
        "factor": "change", "level": "query_tower", "against": "own start", "fusion": ["sum", "qformer"],
        "within": "top", "start": 0.2, "difference": [0.3, 0.4], **INTERVAL,
    },
    "switches": {
        "fusion": "sum", "trains": "query_tower", "objective": "dpo sigmoid", "negatives": ["top", "random"],
        "change": [0.1, -0.2], "start_recall@10": 0.3,
    },
    "recipe": {
        "method": ["DPO", "InfoNCE"], "against": "Q-Former", "start": 0.3, "value": [0.4, 0.5],
        "difference": [0.1, 0.2], **INTERVAL,
    },
}  # fmt: skip


def read(file: str) -> pd.DataFrame:
    return pd.DataFrame(MADE[file[5:]]) if file.startswith("made/") else pd.read_csv(RESULTS / file)


@pytest.fixture(params=[*TABLES, "rank_histogram", "confusion_maps", "triplets", "pictures"])
def draw(request, images: list[Path]) -> Callable[[], Figure]:
    """Each figure in turn, from real tables where it takes one."""
    row = [
        "is red",
        figures.Picture(images[0], "a", framed=True),
        None,
        figures.Picture(images[1], "b", heat=np.eye(4)),
    ]
    others: dict[str, Callable[[], Figure]] = {
        "rank_histogram": lambda: figures.rank_histogram({"sum": [1, 5, 40]}, gallery_size=50),
        "confusion_maps": lambda: figures.confusion_maps({"fit": pd.DataFrame([[1]], index=["x"], columns=["x"])}),
        "triplets": lambda: figures.triplet_grid([(images[0], "is red", images[1])]),
        "pictures": lambda: figures.picture_grid([row], "Found", ["a title"]),
    }
    if request.param in others:
        return others[request.param]
    make, file = TABLES[request.param]
    return lambda: make(read(file))


def test_saved_figures_are_the_same_to_the_byte_whatever_the_settings_and_leave_no_trace(draw, tmp_path, recwarn):
    before = dict(mpl.rcParams)
    figure = draw()
    figures.save(figure, tmp_path / "new" / "first.png")
    figures.save(figure, tmp_path / "second.png")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.facecolor": "red"}):
        figures.save(draw(), tmp_path / "third.png")
    assert len({(tmp_path / f"{name}.png").read_bytes() for name in ("new/first", "second", "third")}) == 1
    with Image.open(tmp_path / "second.png") as image:
        assert set(image.info) <= {"dpi", "Description", "transparency"}  # no date, no software
        assert len(image.info["Description"]) > 20
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert not [str(warning.message) for warning in recwarn]
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", [name for name in TABLES if name != "recall_before_after"])
def test_a_single_row_and_a_table_of_nan_are_drawn_without_a_warning_and_left_as_they_were(name, recwarn):
    make, file = TABLES[name]
    table = read(file)
    tables = [table[table["metric"] == "recall@10"][:1] if name == "recall_bars" else table[:1]]
    if file.startswith("made/"):
        measured = table.select_dtypes("number").columns.difference(["beta", "step", "chance", "gallery", "queries"])
        tables.append(table.assign(**dict.fromkeys(measured, np.nan)))
    for one in tables:
        before = one.copy(deep=True)
        make(one)
        pd.testing.assert_frame_equal(one, before)
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("name", TABLES)
def test_no_rows_are_a_sentence_and_per_cent_is_refused(name):
    make, file = TABLES[name]
    table = read(file)
    assert str(make(table.iloc[:0])).endswith(".")
    shares = {"value", "recall@10", "difference", "accuracy", "dev/recall@10", "satisfies_edit", "change"} & set(table)
    with pytest.raises(style.FigureError, match="fractions of 1, not per cent"):
        make(table.assign(**{share: 45.0 for share in shares}))


def test_a_notebook_shows_a_figure_once_as_a_picture():
    cell = "from cirlib import figures\nfigures.rank_histogram({'sum': [1, 2]}, gallery_size=5)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    NotebookClient(notebook, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert "image/png" in output.data


def test_pictures_keep_their_colours(tmp_path, monkeypatch):
    """Seen from a step back: means of eight by eight pixels, beside those of the figure in all its colours."""
    slope, row = np.linspace(40, 240, 300).astype(np.uint8), []
    for third in (40, 90, 140, 190, 240):
        made = np.stack(np.broadcast_arrays(slope[None], slope[:, None], np.uint8(third)), axis=-1)
        Image.fromarray(made).save(tmp_path / f"{third}.png")
        row.append(figures.Picture(tmp_path / f"{third}.png", str(third)))
    figure = figures.picture_grid([row], "Found", ["a title"] * len(row))
    figures.save(figure, tmp_path / "some.png")
    monkeypatch.setattr(Image.Image, "quantize", lambda image, *_, **__: image)
    figures.save(figure, tmp_path / "all.png")
    some, every = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"), float) for name in ("some", "all"))
    rows, columns = (8 * (size // 8) for size in some.shape[:2])
    off = (some - every)[:rows, :columns].reshape(rows // 8, 8, columns // 8, 8, 3).mean((1, 3))
    assert np.abs(off)[np.abs(off).max(-1) > 1.5].mean() < 4


def test_figures_are_saved_as_png_only(tmp_path):
    with pytest.raises(style.FigureError, match=r"saved as \.png, not as 'note\.pdf'"):
        figures.save("Nothing was trained.", tmp_path / "note.pdf")


def test_the_text_for_who_cannot_see_a_figure_begins_with_its_headline_and_leaves_numbers_out(tmp_path):
    rows = pd.DataFrame({"group": ["fit"], "queries": 10, "value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "chance": 0.01})
    figures.save(figures.kind_bars(rows, context="garments"), tmp_path / "kinds.png")
    text = Image.open(tmp_path / "kinds.png").info["Description"]
    context = "garments · a query counts in every kind that its edit is of · dashed: chance"
    assert text == f"Recall@10 by kind of edit. {context}. Recall@10 (%). fit (n = 10)"


def test_a_long_subtitle_is_wrapped_between_its_notes():
    figure, _ = style.panels(1, (8, 4), "title", "  ·  ".join(["a note of some words"] * 8))
    lines = figure.texts[1].get_text().replace("\xa0", " ").splitlines()
    assert len(lines) > 1 and all(line.startswith("a note") for line in lines)
    assert max(map(len, lines)) <= 12.2 * 8


def test_bars_show_value_interval_and_what_was_not_run():
    rows = pd.DataFrame({"value": [0.3, np.nan], "ci_low": [0.25, np.nan], "ci_high": [0.4, np.nan]})
    for vertical, missing in ((False, "not run"), (True, "")):
        _, (axes,) = style.panels(1, (8, 4), "title")
        style.value_bars(axes, [0, 1], {"sum": rows}, [style.BLUE], vertical=vertical, unit=" %")
        assert [bar.get_height() if vertical else bar.get_width() for bar in axes.patches] == [30, 0]
        assert [text.get_text() for text in axes.texts] == ["30.0 %", missing]
        (intervals,) = (found for found in axes.collections if found.get_label() == "_interval")
        assert intervals.get_segments()[0][:, int(vertical)] == pytest.approx([25, 40])


NONE = {
    "rank_histogram": lambda: figures.rank_histogram({"sum": []}, gallery_size=9),
    "no ranks": lambda: figures.rank_histogram({}, gallery_size=9),
    "confusion_maps": lambda: figures.confusion_maps({}),
    "no confusion": lambda: figures.confusion_maps({"fit": pd.DataFrame([[0]], index=["x"], columns=["x"])}),
    "triplets": lambda: figures.triplet_grid([]),
    "pictures": lambda: figures.picture_grid([[]], "Found"),
    "no miss": lambda: figures.reason_bars(read("failure_cases/reasons.csv").assign(misses=0, value=np.nan)),
    "other metric": lambda: figures.recall_bars(read("summary.csv").assign(metric="recall@50")),
    "other methods": lambda: figures.recall_before_after(read("summary.csv"), "nobody", "nothing"),
    "other levels": lambda: figures.effects(pd.DataFrame(MADE["effects"]).assign(within="nothing")),
}


@pytest.mark.parametrize("name", NONE)
def test_every_figure_has_its_sentence_for_none(name, tmp_path):
    (tmp_path / "a.png").write_bytes(b"of an earlier run")
    said = figures.save(NONE[name](), tmp_path / "a.png")
    assert said.data.endswith(".") and len(said.data) > 10
    assert not (tmp_path / "a.png").exists()
