"""Which file an image id means: one rule, and what is doubtful, unreadable or absent told apart."""

import os
from pathlib import Path
from unicodedata import normalize

import pytest
from made_pictures import picture

from cirlib.benchmarks import BenchmarkError, load_benchmark
from cirlib.benchmarks.image_files import locate
from cirlib.study.pictures import EXTENSIONS, open_rgb


def found(folder: Path, *ids: str) -> list[Path | str]:
    return list(locate({image: image for image in ids}, folder / "images").values())


def put(folder: Path, *names: str, content: bytes | None = None) -> list[Path]:
    """Different pictures under these names of ``images/``, or files of one content."""
    files = [folder / "images" / name for name in names]
    for number, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(size=(20 + number, 20)) if content is None else content)
    return files


@pytest.mark.parametrize("image", ["bags/001.jpg", "bags/001", "001.jpg", "001", "images/bags/001.jpg"])
def test_an_id_is_a_path_or_the_end_of_one_with_or_without_its_ending(tmp_path, image):
    files = put(tmp_path, "bags/001.jpg")
    assert found(tmp_path, image) == files


@pytest.mark.parametrize("image", ["001", "001.jpg"])
def test_one_name_in_two_folders_is_refused_with_both_and_the_way_out(tmp_path, image):
    put(tmp_path, "bags/001.jpg", "shoes/001.jpg")
    (reason,) = found(tmp_path, image)
    assert "images/bags/001.jpg and images/shoes/001.jpg" in reason and "as in 'bags/001'" in reason


def test_ids_with_their_folder_are_each_their_own_file(tmp_path):
    files = put(tmp_path, "bags/001.jpg", "shoes/001.jpg")
    assert found(tmp_path, "bags/001", "shoes/001") == files
    assert found(tmp_path, "001", "bags/001", "shoes/001")[0] == "no file under images/ has this name"


def test_two_endings_of_one_name_are_refused_unless_the_id_has_one(tmp_path):
    files = put(tmp_path, "a.jpg", "a.png")
    assert "images/a.jpg and images/a.png" in found(tmp_path, "a")[0]
    assert found(tmp_path, "a.png") == files[1:]


def test_equal_files_of_one_name_are_one(tmp_path):
    files = put(tmp_path, "shirt/a.jpg", "toptee/a.jpg", content=picture())
    assert found(tmp_path, "a") == files[:1]


@pytest.mark.parametrize("above", ["", "x/"])
def test_a_file_goes_before_those_in_folders_below_it(tmp_path, above):
    files = put(tmp_path, f"{above}a.jpg", f"{above}thumbs/a.jpg", f"{above}thumbs/s/a.png")
    assert found(tmp_path, "a") == files[:1]


@pytest.mark.parametrize("ending", [*EXTENSIONS, ".JPG", ".Png"])
def test_every_ending_that_is_read_is_found(tmp_path, ending):
    files = put(tmp_path, f"a{ending}")
    assert found(tmp_path, "a") == files


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF", "PNG", "WEBP", "JPEG"])
def test_every_format_that_is_named_is_read_whatever_its_ending(tmp_path, kind):
    (file,) = put(tmp_path, "a.jpg", content=picture(kind))
    assert open_rgb(file).mode == "RGB"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("change", [str, str.upper])
def test_names_that_look_the_same_are_the_same(tmp_path, form, change):
    files = put(tmp_path, normalize("NFD" if form == "NFC" else "NFC", "été/Größe é.jpg"))
    assert found(tmp_path, change(normalize(form, "été/Größe é")).replace("SS", "ß")) == files


def test_case_matters_where_two_ids_or_files_differ_by_nothing_else(tmp_path):
    upper, lower = put(tmp_path, "A.jpg", "a.jpg")
    assert found(tmp_path, "A", "a") == [upper, lower]
    lower.unlink()
    assert found(tmp_path, "A", "a") == [upper, "no file under images/ has this name"]


def test_folders_that_are_links_are_followed_and_circles_are_not(tmp_path):
    (tmp_path / "images").mkdir()
    (file,) = put(tmp_path, "../elsewhere/deep/a.jpg")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "self").symlink_to(tmp_path / "images" / "self")
    assert [Path(one).resolve() for one in found(tmp_path, "a", "linked/deep/a.jpg")][1] == file.resolve()
    assert found(tmp_path, "a") == [tmp_path / "images" / "linked" / "deep" / "a.jpg"]


def test_a_folder_of_images_that_is_itself_a_link_is_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.jpg").write_bytes(picture())
    (tmp_path / "images").symlink_to(tmp_path / "mine")
    assert found(tmp_path, "a") == [tmp_path / "images" / "a.jpg"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.heic", "JPEG, PNG"), ("a.svg", "convert it"), ("a", "convert it"), ("a/x.txt", "folder")],
)
def test_what_is_there_but_not_read_is_told_apart_from_what_is_not_there(tmp_path, name, said):
    put(tmp_path, name)
    there, not_there = found(tmp_path, "a", "b")
    assert there.startswith(f"images/{name.split('/')[0]} is there, but is ") and said in there
    assert not_there == "no file under images/ has this name"


def test_a_file_that_may_not_be_read_is_told_with_the_remedy(tmp_path, monkeypatch):
    put(tmp_path, "a.jpg")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "images/a.jpg is there, but may not be read by this user: chmod a+r" in found(tmp_path, "a")[0]


def test_a_folder_that_may_not_be_opened_is_named(tmp_path, monkeypatch):
    put(tmp_path, "shut/a.jpg", "b.jpg")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert found(tmp_path, "a", "b")[0].endswith(f"but {tmp_path}/images/shut may not be opened")


def test_notes_beside_a_picture_do_not_matter(tmp_path):
    file, *_ = put(tmp_path, "a.jpg", "a.txt", "a.json")
    assert found(tmp_path, "a") == [file]


def test_a_catalogue_with_one_numbering_a_folder_is_refused_not_mixed_up(tmp_path, write_json):
    put(tmp_path, *(f"{kind}/{number}.jpg" for kind in ("bags", "shoes") for number in ("001", "002")))
    for kind in ("bags", "shoes"):
        for ids, stem in ((["001", "002"], "plain"), ([f"{kind}/001", f"{kind}/002"], "full")):
            query = {"candidate": ids[0], "target": ids[1], "captions": ["is red", "has dots"]}
            write_json(tmp_path / stem / "captions" / f"cap.{kind}.val.json", [query])
            write_json(tmp_path / stem / "image_splits" / f"split.{kind}.val.json", ids)
            if not (tmp_path / stem / "images").exists():
                (tmp_path / stem / "images").symlink_to(tmp_path / "images")
    plain = load_benchmark("custom", tmp_path / "plain", category="shoes")
    assert all("2 files have this name" in reason for reason in plain.missing.values()) and len(plain.missing) == 2
    with pytest.raises(BenchmarkError, match=r"bags/001.jpg and images/shoes/001.jpg"):
        plain.drop_missing()
    full = load_benchmark("custom", tmp_path / "full")
    assert [full.path(image).parent.name for image in full.gallery] == ["bags", "bags", "shoes", "shoes"]


@pytest.mark.parametrize(
    ("files", "image", "advice"),
    [
        (("a.jpg", "a.png"), "a", "a.jpg"),
        (("x/photos/a.jpg", "y/photos/a.jpg"), "a", "x/photos/a"),
        (("x/a.jpg", "x/a.png", "y/a.jpg"), "a", "x/a.jpg"),
    ],
)
def test_the_advice_where_several_files_answer_names_one_of_them(tmp_path, files, image, advice):
    put(tmp_path, *files)
    (reason,) = found(tmp_path, image)
    assert reason.endswith(f"as in {advice!r}")
    assert found(tmp_path, advice) == [tmp_path / "images" / files[0]]


def test_folders_that_link_to_each_other_are_walked_once_and_known_by_each_of_their_names(tmp_path, monkeypatch):
    (file,) = put(tmp_path, "f0/a.jpg")
    folders = [tmp_path / "images" / f"f{number}" for number in range(12)]
    for folder in folders:
        folder.mkdir(exist_ok=True)
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    opened, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(path) or scandir(path))
    assert found(tmp_path, "a", "f0/a") == ["no file under images/ has this name", file]
    assert len(opened) == 13
    linked = tmp_path / "images" / "f3" / "to-f0" / "a.jpg"
    assert found(tmp_path, "f3/to-f0/a", "f3/to-f0/b") == [linked, "no file under images/ has this name"]


@pytest.mark.parametrize("hidden", ["._a.jpg", ".trash/a.jpg", "__MACOSX/a.jpg", "x/.a.jpg"])
def test_what_systems_hide_is_no_picture(tmp_path, hidden):
    put(tmp_path, hidden)
    assert found(tmp_path, "a", "._a", ".a") == ["no file under images/ has this name"] * 3
    (file,) = put(tmp_path, "z/a.jpg")
    assert found(tmp_path, "a") == [file]
