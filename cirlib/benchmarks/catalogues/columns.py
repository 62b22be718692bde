"""A catalogue's table, read, and which of its columns is what: guessed from names and contents, unless it is named."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from html import unescape
from io import StringIO
from pathlib import Path, PurePosixPath
from unicodedata import normalize
from urllib.parse import unquote

import pandas as pd

from cirlib.benchmarks.base import BenchmarkError
from cirlib.benchmarks.catalogues.wording import LIGHTNESS, canonical
from cirlib.benchmarks.image_files import EXTENSIONS
from cirlib.study.files import read_text
from cirlib.study.parameters import CatalogueTable

NAMES = {  # what a column of this sort is often called, in words that its name has
    "image": ("image", "images", "img", "photo", "picture", "file", "filename", "path"),
    "title": ("title", "name", "headline", "product"),
    "kind": ("kind", "type", "category", "class", "garment"),
    "colour": ("colour", "color", "colours", "colors"),
    "details": ("details", "detail", "features", "tags", "description", "notes", "keywords"),
}
SEPARATORS = re.compile(r"\s*[;|\n]\s*|\.\s+")  # between the details of a cell
MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|[\0-\t\v-\x1f\x7f\u200b\ufeff]")  # tags, and what has no shape
ENTITY = re.compile(r"&#?\w+;")
NUMBER = re.compile(r"\W*[^\W\d]{0,3}\W*\d(?:[\d\W]|[txTX](?=\d))*(?:[^\W\d]{0,3})\W*")  # with a unit, prices, dates
UNNAMED = "unnamed"
ENDINGS = "|".join(map(re.escape, EXTENSIONS))
SEVERAL = re.compile(
    rf"(.+?(?:{ENDINGS})(?:\?[^\s,;|]*)?)\s*[,;|\n].*", re.IGNORECASE | re.DOTALL
)  # pictures in a cell
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
        roles = {self.image: "image"} | dict.fromkeys(self.values, "attribute") | dict.fromkeys(self.details, "details")
        roles |= {name: "colour" if n == 0 else "further colour" for n, name in enumerate(self.colours)}
        roles |= {name: role for name, role in ((self.title, "title"), (self.kind, "kind")) if name}
        return roles | {name: f"not read: {why}" for name, why in self.unused.items()}


def _read_text(path: Path, separators: str) -> pd.DataFrame:
    try:
        text = read_text(path)
    except UnicodeDecodeError:
        text = path.read_text("cp1252", errors="replace")
    told = re.match(r"sep=(.)\s*\n", text)  # Excel's own first line
    text = text[told.end() :] if told else text
    head = re.sub(r'"[^"]*"', "", text).lstrip("\r\n").splitlines()[:1]
    separator = told[1] if told else max(separators, key="".join(head).count)
    return _headed(pd.read_csv(StringIO(text), sep=separator, header=None, dtype=str, keep_default_na=False))


def _read_sheet(path: Path, sheet: str | None = None) -> pd.DataFrame:
    sheets = pd.read_excel(path, sheet_name=None, header=None, dtype=str, keep_default_na=False)
    filled = {name: rows for name, rows in sheets.items() if rows.size and sheet in (None, name)}
    if len(filled) != 1:
        raise BenchmarkError(f"{path}: expected a sheet as data.catalogue.sheet, of {', '.join(sheets)}.")
    return _headed(*filled.values())


def _headed(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` below the first that is not empty, whose cells are the columns' names."""
    rows = rows.map(_text)
    head = (rows != "").any(axis=1).to_numpy().argmax()
    return rows[head + 1 :].reset_index(drop=True).set_axis(list(rows.iloc[head]), axis=1)


READERS: Mapping[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": partial(_read_text, separators=",;\t|"),
    ".tsv": partial(_read_text, separators="\t"),
    ".jsonl": lambda path: pd.read_json(StringIO(read_text(path)), lines=True, dtype=False),
    ".parquet": pd.read_parquet,
    ".xlsx": _read_sheet,
}


def find_table(folder: Path, name: str | None) -> Path:
    """The table of a catalogue's folder: ``name``, else the one called ``catalogue``, else the only one.

    >>> _ = (folder / "mine.csv").write_text("image,title")
    >>> find_table(folder, None).name
    'mine.csv'
    """
    if not folder.is_dir():
        raise BenchmarkError(f"no folder {folder}: data.root names the one with the photographs and the table.")
    there = sorted(file for file in folder.glob("[!.~]*") if file.is_file() and file.suffix.lower() not in EXTENSIONS)
    tables = [file for file in there if file.suffix.lower() in READERS]
    called = [folder / name] if name else [file for file in tables if file.stem.lower() == "catalogue"]
    found = [file for file in called or tables if file.is_file() and file.suffix.lower() in READERS]
    if len(found) == 1:
        return found[0]
    kinds, seen = ", ".join(READERS), ", ".join(file.name for file in there[:9]) or "none"
    said = f"expected {name!r}" if name else "expected one table, name it by data.catalogue.table"
    raise BenchmarkError(f"{folder}: {said} ({kinds}), found {seen}.")


def read_table(path: Path, sheet: str | None = None) -> pd.DataFrame:
    """The table as text, a row an item, empty cells as ""; lists become their parts with "; " between.

    A column without a name, or with that of one before, is called by its place. Raises `BenchmarkError` where it cannot
    be read, has no row, or more than one ``sheet``.

    >>> _ = (folder / "mine.csv").write_text("image;title\\n1.jpg;red <b>coat</b>")
    >>> read_table(folder / "mine.csv").to_dict("records")
    [{'image': '1.jpg', 'title': 'red  coat'}]
    """
    suffix = path.suffix.lower()
    if sheet and suffix != ".xlsx":
        raise BenchmarkError(f"data.catalogue.sheet goes with an .xlsx only, given {path}.")
    try:
        table = _read_sheet(path, sheet) if sheet else READERS[suffix](path)
    except BenchmarkError:
        raise
    except Exception as error:  # a damaged file makes its reader raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0].rpartition("C error: ")[2].rstrip(".")
        raise BenchmarkError(f"{path} cannot be read as a table: {reason}.") from error
    table = table if table.index.name is None else table.reset_index()
    if table.empty:
        raise BenchmarkError(f"{path} has no row.")
    names = [" ".join(_text(name).split()) for name in table.columns]
    known = [bool(name) and name not in names[:n] for n, name in enumerate(names)]
    table.columns = [name if known[n] else f"{name or UNNAMED} ({n + 1})" for n, name in enumerate(names)]
    return table.map(_text)


def _text(cell: object) -> str:
    if isinstance(cell, str):
        text = MARKUP.sub(" ", ENTITY.sub(lambda match: unescape(match[0]), cell)).strip()
        if re.fullmatch(r"\[[^\[\]]*\]", text):  # a list, written as text
            return "; ".join(part.strip(" '\"") for part in text[1:-1].split(","))
        return text
    if isinstance(cell, Mapping):
        cell = list(cell.values())
    if hasattr(cell, "__len__"):  # lists and arrays
        return "" if isinstance(cell, bytes) else "; ".join(filter(None, map(_text, cell)))
    return "" if pd.isna(cell) else str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def cell_parts(cell: str) -> list[str]:
    """What a cell lists, between semicolons or the like, else between commas; what says nothing is left out.

    >>> cell_parts("Zip, hood"), cell_parts("a zip, in 1,5 cm; n/a")
    (['zip', 'hood'], ['a zip, in 1,5 cm'])
    """
    parts = SEPARATORS.split(cell)
    parts = parts if len(parts) > 1 else re.split(r"\s*,\s*(?!\d)", cell)
    return [part for part in (part.strip().lower() for part in parts) if canonical(part)]


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
        said = f"the column {image!r} (as {table[image].iloc[0]!r})" if named.image else "no column"
        there = f"such as {min(pictures)!r}" if pictures else f"which has none ({', '.join(EXTENSIONS)})"
        known = f"data.catalogue.image says which column does, of {', '.join(table)}"
        raise BenchmarkError(f"{said} names a picture of the folder, {there}: {known}.")
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
    """A picture's path in a cell, with slashes; of an address the end, of several the first.

    >>> picture_path("https://shop.example/p/1.5%20coat.JPG?width=80"), picture_path("bags\\\\1.jpg")
    ('1.5 coat.JPG', 'bags/1.jpg')
    """
    text = normalize("NFC", cell.strip().replace("\\", "/"))
    text = SEVERAL.sub(r"\1", text)
    if "://" in text or text.startswith("//"):
        return unquote(re.split(r"[?#]", text)[0].rpartition("/")[2])
    return text.lstrip("/")


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
    values = pd.Series(filter(None, cells.map(canonical)), dtype=str)
    parts, different = [cell_parts(value) for value in values], values.nunique() / max(len(values), 1)
    colours = sum(all(canonical(one.split()[-1]) in LIGHTNESS for one in said) for said in parts)
    lists = sum(len(said) > 1 for said in parts)
    details = _called(name, "details")
    if name not in wanted:
        columns.unused[name] = "not named"
    elif values.empty or (values.nunique() == 1 and not named and len(values) == len(cells)):
        columns.unused[name] = "empty" if values.empty else "one value"
    elif name.startswith(UNNAMED) and not named:
        columns.unused[name] = "no name"
    elif values.str.fullmatch(NUMBER).mean() > 0.5 and not named:
        columns.unused[name] = "numbers"
    elif values.str.contains(r"^(?:https?://|[\w-]*\d[\w-]*$)").mean() > 0.5 and different > MOST_VALUES and not named:
        columns.unused[name] = "links or ids"
    elif not details and (_called(name, "colour") or colours > len(values) / 2):
        columns.colours.append(name)
    elif details or lists > len(values) / 10 or (different > MOST_VALUES and len(values) > 20):
        columns.details.append(name)
    elif columns.kind is None and _called(name, "kind"):
        columns.kind = name
    else:
        columns.values.append(name)
