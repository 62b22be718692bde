"""Catalogues: columns guessed and named, what is odd counted, edits true of the items, the layout loaders read."""

import json

import numpy as np
import pandas as pd
import pytest

from cirlib.benchmarks import BenchmarkError, load_benchmark
from cirlib.benchmarks.base import MADE
from cirlib.benchmarks.catalogues import read_catalogue, write_catalogue
from cirlib.benchmarks.catalogues.columns import read_table
from cirlib.benchmarks.catalogues.pairing import made_edits
from cirlib.benchmarks.catalogues.wording import Item, describe, differences, edit_captions
from cirlib.study.parameters import Data

KINDS, COLOURS, NECKS = (
    ("coat", "dress", "shirt"),
    ("red", "light blue", "grey", "Gray"),
    ("round", "crew", "v-neck", ""),
)


def rows(count):
    """Rows of a clean table."""
    return [
        {
            "file": f"{n}.jpg",
            "name": f"{COLOURS[n % 4]} {KINDS[n % 3]} with {n} buttons",
            "kind": KINDS[n % 3],
            "colour": COLOURS[n % 4],
            "neck": NECKS[n % 4 if n % 5 else 3],
            "price": str(10 + n),
            "details": f"{n} buttons; hem {n}",
        }
        for n in range(count)
    ]


@pytest.fixture
def shop(tmp_path, write_image):
    """Makes a folder with ``count`` pictures, some in subfolders, and a clean table."""

    def make(count=72, table="catalogue.csv"):
        folder = tmp_path / "shop"
        for n in range(count):
            write_image(folder / ("images/more" if n % 9 == 0 else "images") / f"{n}.jpg", seed=n)
        pd.DataFrame(rows(count)).to_csv(folder / table, index=False)
        return folder

    return make


def small_copy(picture):
    return np.asarray(picture.resize((8, 8)), np.float32).ravel()


def read(folder, **named):
    return read_catalogue(Data(benchmark="custom", root=folder, catalogue=named), folder, small_copy)


def counts(catalogue):
    table = catalogue.overview.set_index("what")
    return {what: cells for what, cells in table["cells"].items() if not what.startswith("column")}


def test_columns_are_guessed_from_names_and_contents_and_said(shop):
    said = read(shop()).overview.set_index("what")["read as"]
    expected = ["image", "title", "kind", "colour", "attribute", "not read: numbers", "details"]
    assert said[:7].tolist() == expected and said.index[:7].tolist() == [f"column {name}" for name in rows(1)[0]]


def test_a_column_that_is_named_is_taken_instead(shop):
    catalogue = read(shop(), title="details", attributes=["neck"])
    said = catalogue.overview.set_index("what")["read as"]
    assert said["column details"] == "title" and said["column neck"] == "attribute"
    assert said["column price"] == "not read: not named" and catalogue.items[1].values == {"neck": "crew"}
    with pytest.raises(BenchmarkError, match="names the column 'cut', the table has file, name, kind"):
        read(shop(), title="cut")


def test_all_that_is_odd_is_counted_and_nothing_is_dropped_silently(shop, write_image):
    folder, table = shop(), rows(72)
    table[1]["file"] = "https://shop.example/pictures/1.jpg?width=80"
    table[2]["file"] = "images\\2"
    table += [rows(1)[0], {**rows(1)[0], "name": "another text"}, {**rows(1)[0], "file": "lost.jpg"}]
    write_image(folder / "images" / "spare.png")
    (folder / "images" / "5.jpg").write_bytes(b"no picture")
    for name in ("name", "kind", "colour", "neck", "details"):
        table[7][name] = ""
    pd.DataFrame(table).to_csv(folder / "catalogue.csv", index=False, sep=";", encoding="cp1252")
    catalogue = read(folder)
    assert counts(catalogue) == {
        "rows": 75,
        "rows without a picture": 1,
        "rows that repeat another": 1,
        "further rows of one picture, not read": 1,
        "pictures without a row, searched only": 1,
        "pictures that cannot be decoded, left out": 1,
        "pictures whose names can be no id, left out": 0,
        "items without a word, searched only": 1,
        "folders that may not be opened": 0,
        "items": 70,
    }
    assert "spare" in catalogue.files and "7" in catalogue.files and "5" not in catalogue.files
    table = catalogue.overview.set_index("what")
    assert table.loc["column neck", "empty"] == 33 and table.loc["column price", "numbers"] == 75
    assert (
        table.loc["column colour", "for example"] == "Gray = grey"
        and table.loc["rows without a picture"].iloc[-1] == "lost.jpg"
    )


def test_pictures_of_one_name_are_told_apart_by_their_folders_and_doubt_is_said(tmp_path, write_image):
    for seed, place in enumerate(("bags/001", "shoes/001", "old/007", "new/007")):
        write_image(tmp_path / "images" / f"{place}.jpg", seed=seed)
    rows = [("bags/001.jpg", "red bag"), ("shoes/001.jpg", "blue shoe"), ("007.jpg", "cap"), ("gone.jpg", "hat")]
    pd.DataFrame(rows, columns=["image", "title"]).to_csv(tmp_path / "catalogue.csv", index=False)
    catalogue = read(tmp_path)
    assert {item.id: item.title for item in catalogue.items} == {
        "images/bags/001": "red bag",
        "images/shoes/001": "blue shoe",
    }
    assert catalogue.files["images/shoes/001"] == tmp_path / "images" / "shoes" / "001.jpg"
    lacking = catalogue.overview.set_index("what").loc["rows without a picture"]
    assert lacking["cells"] == 2
    assert "007.jpg (2 files have this name" in lacking["for example"] and "; gone.jpg" in lacking["for example"]


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "parquet", "xlsx"])
def test_every_kind_of_table_reads_the_same(shop, kind):
    folder = shop(3)
    expected = read_table(folder / "catalogue.csv")
    write = {"tsv": lambda t, f: t.to_csv(f, sep="\t", index=False), "parquet": pd.DataFrame.to_parquet}
    write["xlsx"] = lambda t, f: t.to_excel(f, index=False)
    write["jsonl"] = lambda t, f: t.to_json(f, orient="records", lines=True)
    write[kind](pd.DataFrame(rows(3)).replace({"neck": {"": None}}), folder / f"t.{kind}")
    assert read_table(folder / f"t.{kind}").equals(expected)


@pytest.mark.parametrize(
    ("encoding", "separator", "before"),
    [
        ("utf-16", "\t", ""),  # as Excel saves Unicode text
        ("utf-16-le", ",", ""),
        ("utf-8-sig", ";", ""),
        ("cp1252", "|", "sep=|\r\n"),
        ("utf-8", ";", "\r\n\r\n"),
    ],
)
def test_a_table_of_text_is_read_as_programs_write_it(shop, encoding, separator, before):
    folder = shop(3)
    table = read_table(folder / "catalogue.csv").rename(columns={"name": "the, long, name"})
    table["details"] = "größe, 40"
    text = before + table.to_csv(sep=separator, index=False, lineterminator="\r\n")
    (folder / "catalogue.csv").write_bytes(text.encode(encoding))
    assert read_table(folder / "catalogue.csv").equals(table)


def test_one_sheet_of_a_workbook_is_read_and_of_several_the_one_that_is_named(shop):
    folder, table = shop(9), pd.DataFrame(rows(9))
    (folder / "catalogue.csv").unlink()
    with pd.ExcelWriter(folder / "shop.xlsx") as book:
        pd.DataFrame().to_excel(book, sheet_name="empty")
        table.to_excel(book, sheet_name="Women", index=False, startrow=2)
    (folder / "~$shop.xlsx").write_bytes(b"open in Excel")
    assert len(read(folder).items) == 9
    with pd.ExcelWriter(folder / "shop.xlsx", mode="a") as book:
        table[:4].to_excel(book, sheet_name="Men", index=False)
    with pytest.raises(BenchmarkError, match=r"a sheet as data.catalogue.sheet, of empty, Women, Men"):
        read(folder)
    assert len(read(folder, sheet="Men").items) == 4
    table.to_csv(folder / "catalogue.csv")
    with pytest.raises(BenchmarkError, match=r"data.catalogue.sheet goes with an .xlsx only"):
        read(folder, sheet="Men")


def test_columns_of_one_name_are_told_apart_and_those_without_a_name_are_not_read(shop):
    folder = shop(9)
    text = (folder / "catalogue.csv").read_text().replace("colour,neck,price", "colour, colour ,", 1)
    (folder / "catalogue.csv").write_text(text)
    said = read(folder).overview.set_index("what")["read as"]
    assert said["column colour"] == "colour" and said["column colour (5)"] == "further colour"
    assert said["column unnamed (6)"] == "not read: no name"


def test_cells_are_cleaned_whatever_program_filled_them(shop):
    folder = shop(24)
    for n, row in enumerate(table := rows(24)):
        row["name"] = f"<b>{row['name']}</b>&nbsp;&amp; bow"
        row["colour"] = ("red, blue", "['grey', 'red']", "N/A")[n % 3]
        row |= {"Has_hood": ("yes", "no")[n % 2], "price": f"€ {n},99", "since": f"2024-01-{n + 1:02} 10:00:00"}
        row |= {"weight": f"{n} kg", "note": "-", "material": ("wool, silk", "silk")[n % 2], "details": "none"}
    pd.DataFrame(table).to_csv(folder / "catalogue.csv", index=False)
    catalogue = read(folder)
    said = catalogue.overview.set_index("what")["read as"]
    assert {said[f"column {name}"] for name in ("price", "since", "weight")} == {"not read: numbers"}
    assert said["column note"] == "not read: empty" and said["column material"] == "details"
    first, second, third = (next(item for item in catalogue.items if item.id == str(n)) for n in range(3))
    assert first.title == "red coat with 0 buttons & bow" and first.details == ("wool", "silk")
    assert (first.colour, first.accents) == ("red", ("blue",)) and (second.colour, second.accents) == ("grey", ("red",))
    assert first.values == {"neck": "", "hood": "hood"} and second.values["hood"] == ""
    assert third.colour == "grey"  # out of the title


@pytest.mark.parametrize(
    "cell",
    ["{}.jpg;9.jpg", "['{}.jpg', '9.jpg']", "https://cdn.example/{}.jpg?v=1, https://cdn.example/9.jpg", "./images/{}",
     "//cdn.example/{}.jpg?v=1#a", r"..\shop\images\{}.JPG", "../shop/images/{}.jpg"],
)  # fmt: skip
def test_a_cell_names_its_picture_in_any_way(tmp_path, write_image, cell):
    for n in range(3):
        write_image(tmp_path / "shop" / "images" / f"{n}.jpg", seed=n)
    table = [(cell.format(n), f"shoe {n}", "see http://[this]") for n in range(3)]
    pd.DataFrame(table, columns=["image", "title", "note"]).to_csv(tmp_path / "shop" / "catalogue.csv", index=False)
    assert [item.id for item in read(tmp_path / "shop").items] == ["0", "1", "2"]


def test_rows_that_name_their_pictures_through_links_have_them(shop):
    folder, table = shop(9), pd.DataFrame(rows(9))
    (folder / "same").symlink_to(folder / "images")
    table["file"] = ["same/more/0.jpg", *(f"same/{n}.jpg" for n in range(1, 9))]
    table.to_csv(folder / "catalogue.csv", index=False)
    catalogue = read(folder)
    assert counts(catalogue)["items"] == 9 and counts(catalogue)["pictures without a row, searched only"] == 0


def test_what_is_no_picture_is_not_counted_or_said(shop):
    folder = shop(9)
    content = (folder / "images" / "1.jpg").read_bytes()
    for junk in ("images/._1.jpg", "__MACOSX/images/1.jpg", ".trash/2.jpg", "images/Thumbs.db", "images/.DS_Store"):
        (folder / junk).parent.mkdir(parents=True, exist_ok=True)
        (folder / junk).write_bytes(b"junk")
    (folder / "images" / ("x" * 210 + ".jpg")).write_bytes(content)
    (folder / "images" / "a\nb.jpg").write_bytes(content)
    for n, broken in enumerate((b"", content[:300], b"<html>", content[: len(content) // 2]), start=2):
        (folder / "images" / f"{n}.jpg").write_bytes(broken)
    said = counts(read(folder))
    assert said["pictures that cannot be decoded, left out"] == 4 and said["items"] == 5
    assert said["pictures whose names can be no id, left out"] == 2
    assert said["pictures without a row, searched only"] == 0


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "catalogue.csv").rename(folder / "shop.ods"), r"\.xlsx\), found shop.ods"),
        (
            lambda folder: (folder / "catalogue.csv").write_text("file,name\n1.jpg,red, coat"),
            "Expected 2 fields in line 2",
        ),
        (lambda folder: (folder / "catalogue.csv").write_text('file,name\n1.jpg,"red\n2.jpg,b'), "EOF inside string"),
        (lambda folder: [p.rename(p.with_suffix(".heic")) for p in folder.rglob("*.jpg")], r"which has none \(.jpg"),
        (lambda folder: (folder / "catalogue.csv").write_bytes(b""), "cannot be read as a table"),
        (lambda folder: (folder / "catalogue.csv").unlink(), r"expected one table, .*found none"),
        (lambda folder: (folder / "catalogue.csv").write_text("file,name\n"), "has no row"),
        (
            lambda folder: (folder / "catalogue.csv").write_text("file,name\nx.jpg,red coat"),
            "no column names a picture",
        ),
        (lambda folder: (folder / "catalogue.csv").write_text("file,price\n1.jpg,3\n2.jpg,4"), "no column says what"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(shop, spoil, told):
    folder = shop(9)
    spoil(folder)
    with pytest.raises(BenchmarkError, match=told) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_an_edit_speaks_of_what_differs_and_never_leads_from_a_word_to_its_synonym():
    one = Item("a", "red coat with a zip", "coat", "red", values={"neck": "crew", "length": "mini"})
    two = Item("b", "blue coat with two pockets", "coat", "blue", values={"neck": "crew", "length": "maxi"})
    assert {sort for sort, _ in differences(one, two)} == {"colour", "value", "detail", "title"}
    rng = np.random.default_rng(0)
    said = [" and ".join(edit_captions(rng, one, two)) for _ in range(300)]
    assert {"blue", "maxi", "pockets", "longer"} <= set(" ".join(said).split()) and not any(
        "shorter" in s for s in said
    )
    assert len(set(said)) > 200 and any("the same crew" in text or "also crew" in text for text in said)
    with pytest.raises(ValueError, match="no edit"):
        edit_captions(rng, one, one)


def test_a_new_kind_is_nearly_always_told():
    one, two = Item("a", kind="coat", colour="red"), Item("b", kind="dress", colour="blue", details=("zip", "bow"))
    rng = np.random.default_rng(0)
    said = [" and ".join(edit_captions(rng, one, two)) for _ in range(200)]
    assert sum("dress" in text or "frock" in text for text in said) > 180


def test_titles_alone_are_enough(shop):
    folder = shop()
    pd.DataFrame(rows(72))[["file", "name"]].to_csv(folder / "catalogue.csv", index=False)
    item = read(folder).items[1]
    assert (item.kind, item.colour, item.fragments) == ("dress", "light blue", ("1 buttons",))
    assert "light blue" in describe(np.random.default_rng(0), item)


def test_pairs_share_something_and_are_told_both_ways(shop):
    catalogue = read(shop())
    looks = np.stack([catalogue.looks[item.id] for item in catalogue.items])
    edits = made_edits(catalogue.items, looks, 100, seed=0)
    pairs = {(edit["candidate"], edit["target"]) for edit in edits}
    assert len(edits) == len(pairs) >= 100 and pairs == {(b, a) for a, b in pairs}
    assert edits == made_edits(catalogue.items, looks, 100, seed=0)


def test_an_edit_starts_from_a_thing_of_the_same_kind_or_of_a_like_look():
    rng, group = np.random.default_rng(0), np.repeat(np.arange(10), 40)  # 10 looks of 40 items each
    looks = rng.normal(size=(10, 16))[group] + 0.1 * rng.normal(size=(400, 16))
    items = [Item(str(n), kind=KINDS[n % 3], colour=f"shade {n}") for n in range(400)]
    pairs = [[int(edit[end]) for end in ("candidate", "target")] for edit in made_edits(items, looks, 400, seed=0)]
    alike, of_kind = (np.array([of[a] == of[b] for a, b in pairs]) for of in (group, np.arange(400) % 3))
    assert np.mean(alike) > 0.95 and 0.6 < np.mean(of_kind) < 0.8  # by chance 0.1 and 0.33


def test_without_hand_written_edits_made_ones_of_held_out_items_are_reported(shop, tmp_path):
    folder, raw = shop(), tmp_path / "raw"
    data = Data(benchmark="custom", root=folder, catalogue={"edits": 2, "captions": 2})
    write_catalogue(read(folder), data, folder, raw)
    train, reported = (load_benchmark("custom", raw, split=split) for split in ("train", "val"))
    assert reported.categories == [MADE] and not reported.missing and not train.missing
    assert not set(train.gallery) & set(reported.gallery)
    pairs = json.loads((raw / "pairs.json").read_text())
    assert {pair["image"] for pair in pairs} <= set(train.gallery)
    assert len(json.loads((raw / "catalogue.json").read_text())) == 72


def test_the_gallery_of_hand_written_edits_stays_out_of_training(shop, tmp_path, write_json):
    folder, raw = shop(), tmp_path / "raw"
    gallery = [str(n) for n in range(12)]
    write_json(folder / "image_splits/split.mine.val.json", gallery)
    edit = {"candidate": "3", "target": "4", "captions": ["is red", "has a bow"]}
    write_json(folder / "captions/cap.mine.val.json", [edit])
    data = Data(benchmark="custom", root=folder, catalogue={"edits": 2, "captions": 2})
    write_catalogue(read(folder), data, folder, raw)
    assert load_benchmark("custom", raw).categories == ["mine"]
    used = {pair["image"] for pair in json.loads((raw / "pairs.json").read_text())}
    assert not (used | load_benchmark("custom", raw, split="train").query_images) & set(gallery)


@pytest.mark.parametrize("other", [{"benchmark": "fashioniq"}, {"benchmark": "custom", "categories": ["dress"]}])
def test_a_catalogue_is_all_that_its_study_is_made_of(other):
    with pytest.raises(ValueError, match="catalogue goes with benchmark custom and categories null only"):
        Data(root="shop", catalogue={}, **other)


@pytest.mark.parametrize("named", ["{}.jpg", "images/{}", "{}"])
def test_a_gallery_named_in_another_way_stays_out_of_training_too(shop, tmp_path, write_json, named):
    folder = shop()
    gallery = [named.format(n) for n in (1, 2, 3, 4)]
    edits = [{"candidate": gallery[0], "target": gallery[1], "captions": ["is red", "has dots"]}]
    write_json(folder / "captions" / "cap.hand.val.json", edits)
    write_json(folder / "image_splits" / "split.hand.val.json", gallery)
    write_catalogue(read(folder), Data(benchmark="custom", root=folder, catalogue={}), folder, tmp_path / "raw")
    trained = json.loads((tmp_path / "raw/image_splits/split.catalogue.train.json").read_text())
    trained += json.loads((tmp_path / "raw/image_splits/split.catalogue.dev.json").read_text())
    assert len(trained) == 68 and not {"1", "2", "3", "4"} & set(trained)


def test_a_table_of_another_machine_is_read_by_names_and_a_wrong_folder_is_not(tmp_path, write_image):
    for n in range(3):
        write_image(tmp_path / "shoes" / f"{n}.jpg", seed=n)
    for before, items in ((r"C:\photos\{}.jpg", 3), ("https://shop.example/{}.jpg", 3)):
        pd.DataFrame([(before.format(n), f"shoe {n}") for n in range(3)], columns=["image", "title"]).to_csv(
            tmp_path / "catalogue.csv", index=False
        )
        assert len(read(tmp_path).items) == items
    rows = [(f"{kind}/{n}.jpg", f"{kind} {n}") for kind in ("bags", "shoes") for n in range(3)]
    pd.DataFrame(rows, columns=["image", "title"]).to_csv(tmp_path / "catalogue.csv", index=False)
    assert [item.title for item in read(tmp_path).items] == ["shoes 0", "shoes 1", "shoes 2"]


@pytest.mark.parametrize("written", [2, 60])
def test_a_small_catalogue_is_refused_in_a_sentence_or_has_a_dev_part(shop, tmp_path, written):
    folder, data = shop(written), {"benchmark": "custom", "catalogue": {}, "dev_fraction": 0.01}
    data = Data(root=folder, **data)
    if written == 2:
        with pytest.raises(BenchmarkError, match="2 items are left to train on, expected at least 40"):
            write_catalogue(read(folder), data, folder, tmp_path / "raw")
    else:
        write_catalogue(read(folder), data, folder, tmp_path / "raw")
        assert len(json.loads((tmp_path / "raw/image_splits/split.catalogue.dev.json").read_text())) == 6


def test_too_few_items_to_train_on_are_refused(shop, tmp_path):
    folder = shop(20)
    with pytest.raises(BenchmarkError, match="20 items are left to train on, expected at least 40"):
        write_catalogue(read(folder), Data(benchmark="custom", root=folder, catalogue={}), folder, tmp_path / "raw")


def test_real_photographs_with_titles_make_a_study(real_data, tmp_path):
    folder = real_data("catalogue")
    catalogue = read(folder)
    said = catalogue.overview.set_index("what")["read as"]
    assert said["column image"] == "image" and said["column title"] == "title" and counts(catalogue)["items"] == 3581
    small = type(catalogue)(catalogue.items[:200], catalogue.files, catalogue.looks, catalogue.overview)
    write_catalogue(small, Data(benchmark="custom", root=folder, catalogue={"edits": 2}), folder, tmp_path / "raw")
    assert len(load_benchmark("custom", tmp_path / "raw").gallery) == 1000


def test_hand_written_edits_that_are_wrong_are_told_by_the_users_own_file(shop, tmp_path, write_json):
    folder = shop()
    for name, content in (("captions/cap", [{"candidate": 1}]), ("image_splits/split", ["1", "2"])):
        write_json(folder / f"{name}.mine.val.json", content)
    with pytest.raises(BenchmarkError, match=rf"^{folder}/captions/cap.mine.val.json, record 0, 'candidate'"):
        write_catalogue(read(folder), Data(benchmark="custom", root=folder, catalogue={}), folder, tmp_path / "raw")


def test_titles_of_one_word_are_said_once_and_titles_that_are_all_the_same_are_refused(shop, tmp_path):
    folder, table = shop(), pd.DataFrame(rows(72))[["file", "kind"]].set_axis(["file", "title"], axis=1)
    table.to_csv(folder / "catalogue.csv", index=False)
    one, two = read(folder).items[:2]
    assert [sort for sort, _ in differences(one, two)] == ["kind"]
    table.assign(title="red coat").to_csv(folder / "catalogue.csv", index=False)
    with pytest.raises(BenchmarkError, match="what is written about 14 items of val is the same: no edit can be made"):
        write_catalogue(read(folder), Data(benchmark="custom", root=folder, catalogue={}), folder, tmp_path / "raw")
