"""A catalogue's table, read, and which of its columns is what: guessed from names and contents, unless it is named."""

import csv
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from unicodedata import normalize
from urllib.parse import unquote, urlsplit

import pandas as pd

from cirlib.benchmarks.base import BenchmarkError
from cirlib.benchmarks.catalogues.wording import LIGHTNESS, canonical
from cirlib.benchmarks.image_files import EXTENSIONS
from cirlib.study.parameters import CatalogueTable

NAMES = {  # what a column of this sort is often called, in words that its name has
    "image": ("image", "images", "img", "photo", "picture", "file", "filename", "path"),
    "title": ("title", "name", "headline", "product"),
    "kind": ("kind", "type", "category", "class", "garment"),
    "colour": ("colour", "color", "colours", "colors"),
    "details": ("details", "detail", "features", "tags", "description", "notes", "keywords"),
}
SEPARATORS = re.compile(r"\s*[;|\n]\s*|\.\s+")  # between the details of a cell
MOST_VALUES = 0.5  # of its cells that differ: a column above is no attribute but details or an id


@dataclass
class Columns:
    """Which column is what; ``unused``: column → why."""

    image: str
    title: str | None = None
    kind: str | None = None
    colours: list[str] = field(default_factory=list)  # the first is the main one
    values: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)

    @property
    def roles(self) -> dict[str, str]:
        """Column → what it is read as."""
        roles = {
            self.image: "image",
            **dict.fromkeys(self.values, "attribute"),
            **dict.fromkeys(self.details, "details"),
        }
        roles |= {name: "colour" if n == 0 else "further colour" for n, name in enumerate(self.colours)}
        roles |= {name: role for name, role in ((self.title, "title"), (self.kind, "kind")) if name}
        return roles | {name: f"not read: {why}" for name, why in self.unused.items()}


def _read_text(path: Path, separators: str) -> pd.DataFrame:
    try:
        text, encoding = path.read_text("utf-8-sig"), "utf-8-sig"
    except UnicodeDecodeError:
        text, encoding = path.read_text("cp1252", errors="replace"), "cp1252"
    head = text.splitlines()[0] if text else ""
    separator = max(separators, key=head.count)
    return pd.read_csv(
        path,
        sep=separator,
        dtype=str,
        keep_default_na=False,
        encoding=encoding,
        encoding_errors="replace",
        quoting=csv.QUOTE_MINIMAL,
    )


READERS: Mapping[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": partial(_read_text, separators=",;\t|"),
    ".tsv": partial(_read_text, separators="\t"),
    ".jsonl": partial(pd.read_json, lines=True, dtype=False),
    ".parquet": pd.read_parquet,
    ".xlsx": partial(pd.read_excel, dtype=str, keep_default_na=False),
}


def find_table(folder: Path, name: str | None) -> Path:
    """The table of a catalogue's folder: ``name``, else the one called ``catalogue``, else the only one.

    >>> _ = (folder / "mine.csv").write_text("image,title")
    >>> find_table(folder, None).name
    'mine.csv'
    """
    there = sorted(file for file in folder.glob("*") if file.suffix.lower() in READERS)
    wanted = [file for file in there if (file.name == name if name else file.stem == "catalogue")]
    found = wanted or ([] if name else there)
    if len(found) == 1:
        return found[0]
    kinds, seen = ", ".join(READERS), ", ".join(file.name for file in there) or "none"
    said = f"expected {name!r}" if name else "expected one table, name it by data.catalogue.table"
    raise BenchmarkError(f"{folder}: {said} ({kinds}), found {seen}.")


def read_table(path: Path) -> pd.DataFrame:
    """The table as text, a row an item, empty cells as ""; lists become their parts with "; " between.

    Raises `BenchmarkError` where it cannot be read or has no row.

    >>> _ = (folder / "mine.csv").write_text("image;title\\n1.jpg;red coat")
    >>> read_table(folder / "mine.csv").to_dict("records")
    [{'image': '1.jpg', 'title': 'red coat'}]
    """
    try:
        table = READERS[path.suffix.lower()](path)
    except (ValueError, OSError, ImportError, KeyError) as error:
        raise BenchmarkError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}.") from error
    if table.empty:
        raise BenchmarkError(f"{path} has no row.")
    table.columns = [" ".join(str(name).split()) for name in table.columns]
    return table.map(_text)


def _text(cell: object) -> str:
    if isinstance(cell, str):
        return cell.strip()
    if hasattr(cell, "__len__"):  # lists and arrays
        return "; ".join(map(_text, cell))
    return "" if pd.isna(cell) else str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def guess_columns(table: pd.DataFrame, pictures: Collection[str], named: CatalogueTable) -> Columns:
    """What each column is. ``pictures``: names of the files there are, without ending, in lower case.

    The image column is the one whose cells name the most pictures. Raises `BenchmarkError` for a named column that is
    not there, where none names a picture, and where nothing says what the pictures show.

    >>> table = pd.DataFrame({"file": ["1.jpg", "2.jpg"], "price": ["3", "4"], "colour": ["red", "blue"]})
    >>> guess_columns(table, {"1", "2"}, CatalogueTable()).roles
    {'file': 'image', 'colour': 'colour', 'price': 'not read: numbers'}
    """
    for name in filter(None, [named.image, named.title, *(named.attributes or [])]):
        if name not in table:
            raise BenchmarkError(f"data.catalogue names the column {name!r}, the table has {', '.join(table)}.")
    image = named.image or max(table, key=lambda name: (_hits(table[name], pictures), _called(name, "image")))
    if not _hits(table[image], pictures):
        raise BenchmarkError(
            f"no column names pictures of the folder: name it by data.catalogue.image, of {', '.join(table)}."
        )
    others = [name for name in table if name != image]
    title = named.title or _title(table, others)
    wanted = named.attributes if named.attributes is not None else others
    columns = Columns(image, title)
    for name in (name for name in others if name != title):
        _place(columns, name, table[name], wanted, named.attributes is not None)
    if not (title or columns.kind or columns.colours or columns.values or columns.details):
        raise BenchmarkError("no column says what the pictures show: expected a title or attributes.")
    return columns


def picture_path(cell: str) -> str:
    """A picture's path in a cell, with slashes; of an address the end.

    >>> picture_path("https://shop.example/p/1.5%20coat.JPG?width=80"), picture_path("bags\\\\1.jpg")
    ('1.5 coat.JPG', 'bags/1.jpg')
    """
    text = normalize("NFC", cell.strip().replace("\\", "/"))
    return unquote(urlsplit(text).path).rpartition("/")[2] if "://" in text else text.lstrip("/")


def picture_name(cell: str) -> str:
    """A picture's name in a cell: what stands behind its folders, without its ending.

    >>> picture_name("https://shop.example/p/1.5 coat.JPG?width=80"), picture_name("1.5")
    ('1.5 coat', '1.5')
    """
    file = PurePosixPath(picture_path(cell))
    return file.stem if file.suffix.lower() in EXTENSIONS else file.name


def _hits(cells: pd.Series, pictures: Collection[str]) -> int:
    return sum(picture_name(cell).casefold() in pictures for cell in cells)


def _called(name: str, sort: str) -> bool:
    return bool({*re.findall(r"[a-z]+", name.lower())} & {*NAMES[sort]})


def _title(table: pd.DataFrame, names: list[str]) -> str | None:
    """The column called a title, else the one of the most different texts of several words."""
    texts = {name: table[name][table[name] != ""] for name in names}
    called = [name for name in names if _called(name, "title") and texts[name].str.contains(r"[^\W\d]{3}").mean() > 0.5]
    long = [name for name in names if len(texts[name]) and texts[name].str.count(r"\s").mean() >= 1.5]
    sentences = [name for name in long if not _called(name, "details") and texts[name].str.contains(";").mean() <= 0.2]
    return called[0] if called else max(sentences, key=lambda name: texts[name].nunique(), default=None)


def _place(columns: Columns, name: str, cells: pd.Series, wanted: Collection[str], named: bool) -> None:
    """Puts a column where it belongs."""
    values = cells[cells != ""].map(canonical)
    numbers = pd.to_numeric(values, errors="coerce").notna().mean() if len(values) else 0.0
    lists, different = values.str.contains(SEPARATORS).mean(), values.nunique() / max(len(values), 1)
    if name not in wanted:
        columns.unused[name] = "not named"
    elif values.empty or (values.nunique() == 1 and not named and len(values) == len(cells)):
        columns.unused[name] = "empty" if values.empty else "one value"
    elif numbers > 0.5 and not named:
        columns.unused[name] = "numbers"
    elif values.str.contains(r"^(?:https?://|[\w-]*\d[\w-]*$)").mean() > 0.5 and different > MOST_VALUES and not named:
        columns.unused[name] = "links or ids"
    elif lists > 0.1 or _called(name, "details") or (different > MOST_VALUES and len(values) > 20):
        columns.details.append(name)
    elif _called(name, "colour") or values.map(lambda text: (text.split() or [""])[-1] in LIGHTNESS).mean() > 0.5:
        columns.colours.append(name)
    elif columns.kind is None and _called(name, "kind"):
        columns.kind = name
    else:
        columns.values.append(name)
