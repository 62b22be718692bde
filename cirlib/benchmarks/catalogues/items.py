"""A table's rows with the folder's pictures: items, and everything odd about them, counted."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image

from cirlib.benchmarks.annotations import is_image_id
from cirlib.benchmarks.base import BenchmarkError
from cirlib.benchmarks.catalogues.columns import NUMBER, Columns, cell_parts, guess_columns, picture_name, picture_path
from cirlib.benchmarks.catalogues.wording import Item, attribute, canonical, from_title
from cirlib.benchmarks.image_files import EXTENSIONS, find_images, walk
from cirlib.study.parameters import CatalogueTable
from cirlib.study.pictures import open_rgb

Look = Callable[[Image.Image], np.ndarray]  # of a picture a vector (P,), by which pictures are alike

EXAMPLES = 3  # that the overview shows of anything


@dataclass(frozen=True)
class CatalogueItems:
    """What a folder and its table hold. ``files``: every picture's id → file, also of those without a row.

    ``looks``: id → what :data:`Look` makes of it, (P,), of those that can be decoded.

    ``overview``: what each column is read as, and what is missing, repeated or odd, a row each.
    """

    items: list[Item]
    files: dict[str, Path]
    looks: dict[str, np.ndarray]
    overview: pd.DataFrame


def read_items(folder: Path, table: pd.DataFrame, named: CatalogueTable, look: Look) -> CatalogueItems:
    """The items of the pictures under ``folder`` that ``table`` describes.

    Raises `BenchmarkError` where no row has a picture.

    >>> _, table = write_image(folder / "a.jpg"), pd.DataFrame({"image": ["a.jpg", "b"], "title": ["Red coat", "Hat"]})
    >>> items = read_items(folder, table, CatalogueTable(), np.ravel)
    >>> items.items[0].title, items.overview.set_index("what").loc["rows without a picture", "for example"]
    ('red coat', 'b')
    """
    closed: list[str] = []
    pictures = sorted(path for path in map(Path, walk(str(folder), closed)) if _is_picture(path))
    columns = guess_columns(table, {picture_name(path.name).casefold() for path in pictures}, named)
    cells, every = table[columns.image].map(picture_path), _picture_ids(pictures, folder)
    names = {path: image for path, image in every.items() if is_image_id(image)}
    odd = [ascii(image) for path, image in every.items() if path not in names]
    found = _found(cells, folder)
    real = {path.resolve(): image for path, image in names.items()}
    ids = cells.map(lambda cell: real.get(found[cell].resolve(), "") if isinstance(found.get(cell), Path) else "")
    there = ids != ""
    whole, again = table.duplicated(), ids.duplicated() & ~table.duplicated()
    rows = table.assign(**{columns.image: ids})[there & ~ids.duplicated()]
    if rows.empty:
        raise BenchmarkError(f"{folder}: no row of the table names a picture that is there.")
    items = [_item(row, columns) for row in rows.to_dict("records")]
    files = {image: path for path, image in names.items()}
    described = {*ids}
    spare = [image for image in files if image not in described]
    looks = {image: seen for image, file in files.items() if (seen := _seen(file, look)) is not None}
    broken = [image for image in files if image not in looks]
    silent = [item.id for item in items if not item.words()]
    absent = zip(cells[~there], table[columns.image][~there], strict=True)
    counts = {
        "rows": (len(table), []),
        "rows without a picture": (int((~there).sum()), [_why_not(found, path, cell) for path, cell in absent]),
        "rows that repeat another": (int((whole & there).sum()), ids[whole & there].tolist()),
        "further rows of one picture, not read": (int((again & there).sum()), ids[again & there].tolist()),
        "pictures without a row, searched only": (len(spare), spare),
        "pictures that cannot be decoded, left out": (len(broken), broken),
        "pictures whose names can be no id, left out": (len(odd), odd),
        "items without a word, searched only": (len(silent), silent),
        "folders that may not be opened": (len(closed), closed),
    }
    told = [item for item in items if item.id in looks and item.words()]
    overview = _overview(table, columns, counts | {"items": (len(told), [])})
    return CatalogueItems(told, {image: files[image] for image in looks}, looks, overview)


def _seen(file: Path, look: Look) -> np.ndarray | None:
    """What ``look`` makes of a picture; None: it cannot be decoded."""
    try:
        picture = open_rgb(file)
    except Exception:  # Pillow's decoders raise many types on damaged data
        return None
    return look(picture)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def _picture_ids(pictures: Sequence[Path], folder: Path) -> dict[Path, str]:
    """Each file's id: its name; behind its folders, and with its ending, where others have the same."""
    ids: dict[Path, str] = {}
    ways: tuple[Callable[[Path], str], ...] = (
        lambda path: picture_name(path.name),
        lambda path: path.relative_to(folder).with_suffix("").as_posix(),
        lambda path: path.relative_to(folder).as_posix(),
    )
    for way in ways:
        left = [path for path in pictures if path not in ids]
        count = Counter(way(path) for path in left)
        ids |= {path: way(path) for path in left if count[way(path)] == 1}
    return {path: ids[path] for path in pictures}


def _without_ending(cell: str) -> str:
    path = PurePosixPath(cell)
    return path.with_suffix("").as_posix() if path.suffix.lower() in EXTENSIONS else cell


def _found(cells: pd.Series, folder: Path) -> dict[str, Path | str]:
    """Cell → its file, or why it is in doubt: by its whole path, else without its ending, else by its name.

    By their names only where no path leads to a file, as in a table from another machine, and where no two are alike.
    """
    wanted = cells[cells != ""].drop_duplicates()
    found, _ = find_images({cell: cell for cell in wanted}, folder)
    for shorten in (_without_ending, picture_name):
        if shorten is picture_name and found:
            break
        left = wanted[~wanted.isin(found)]
        short = left.map(shorten)
        alone = ~short.duplicated(keep=False)
        found |= find_images(dict(zip(left[alone], short[alone], strict=True)), folder)[0]
    return found


def _why_not(found: Mapping[str, Path | str], path: str, cell: str) -> str:
    return f"{cell} ({found[path]})" if isinstance(found.get(path), str) else cell


def _item(row: dict[str, str], columns: Columns) -> Item:
    """A row as an item; what has no column is looked for in the title."""
    title = " ".join((row[columns.title] if columns.title else "").lower().split())
    colours = [[canonical(part) for part in cell_parts(row[name])] for name in columns.colours] or [[]]
    item = Item(
        row[columns.image], title if canonical(title) else "", canonical(row[columns.kind]) if columns.kind else "",
        (colours[0] or [""])[0], tuple(chain(colours[0][1:], *colours[1:])),
        dict(attribute(name, row[name]) for name in columns.values),
        tuple(part for name in columns.details for part in cell_parts(row[name])),
    )  # fmt: skip
    return from_title(item)


def _overview(table: pd.DataFrame, columns: Columns, counts: dict[str, tuple[int, list[str]]]) -> pd.DataFrame:
    rows = []
    for name, role in sorted(columns.roles.items(), key=lambda pair: list(table).index(pair[0])):
        filled = table[name][table[name] != ""]
        merged = _merged(filled) if not role.startswith(("image", "title", "details", "not read")) else []
        numbers, empty = filled.str.fullmatch(NUMBER).sum(), len(table) - len(filled)
        shown = merged[:EXAMPLES] or [value for value, _ in Counter(filled).most_common(EXAMPLES)]
        rows.append((f"column {name}", role, len(filled), empty, filled.nunique(), len(merged), numbers, shown))
    rows += [(what, "", number, *[""] * 4, examples[:EXAMPLES]) for what, (number, examples) in counts.items()]
    names = ["what", "read as", "cells", "empty", "different", "synonyms", "numbers", "for example"]
    return pd.DataFrame(rows, columns=names).assign(**{"for example": lambda t: t["for example"].map("; ".join)})


def _merged(cells: Sequence[str]) -> list[str]:
    """Values that are read as another one of the column, as "gray = grey"."""
    values = dict.fromkeys(" ".join(str(cell).split()) for cell in cells)
    return [f"{value} = {canonical(value) or 'nothing'}" for value in values if value.lower() != canonical(value)]
