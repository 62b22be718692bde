"""Images out of folders, archives, parquet files and data sets of the hub."""

import io
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_pictures import picture
from PIL import Image

from cirlib.benchmarks import BenchmarkError
from cirlib.benchmarks.image_files import locate
from cirlib.benchmarks.image_sources import take_images
from cirlib.study.errors import WriteError

WANTED = ["a", "b", "c"]
FILES = {"x/a.jpg": picture(), "x/y/b.png": picture("PNG", colour="navy"), "other.jpg": picture(), "x/notes.txt": b"no"}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """An archive of the kind that the path's ending says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif path.suffix == ".parquet":
        return write_rows(path, [{"image": {"bytes": content, "path": name}} for name, content in files.items()])
    else:
        with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def write_rows(path: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def taken(source, folder: Path) -> list[str]:
    outcomes = take_images(source, WANTED, folder)
    assert all(outcome.kind == "there" for outcome in outcomes.values())
    assert sorted(outcomes) == sorted(path.stem for path in folder.iterdir())
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["i.zip", "i.tar", "i.tar.gz", "i.tgz", "i.parquet"])
def test_only_the_wanted_images_leave_an_archive(tmp_path, name):
    assert taken(pack(tmp_path / name, FILES), tmp_path / "images") == ["a.jpg", "b.png"]
    assert (tmp_path / "images" / "a.jpg").read_bytes() == FILES["x/a.jpg"]


def test_images_of_a_folder_are_linked_not_copied(tmp_path):
    source = write_folder(tmp_path / "mine", FILES)
    assert taken(source, tmp_path / "images") == ["a.jpg", "b.png"]
    assert (tmp_path / "images" / "a.jpg").resolve() == (source / "x" / "a.jpg").resolve()
    assert taken(source, tmp_path / "images") == ["a.jpg", "b.png"]  # once more, over the links


def test_archives_in_a_folder_give_what_its_files_do_not(tmp_path):
    source = write_folder(tmp_path / "mine", {"a.jpg": picture(colour="red")})
    pack(source / "rest.zip", {"a.jpg": picture(colour="blue"), "b.jpg": picture()})
    assert taken(source, tmp_path / "images") == ["a.jpg", "b.jpg"]
    assert (tmp_path / "images" / "a.jpg").read_bytes() == picture(colour="red")


@pytest.fixture
def bsdtar(tmp_path, monkeypatch) -> Path:
    """A stand-in that takes a .rar for a tar with another name, and refuses what is none, as bsdtar does."""
    tool = tmp_path / "bin" / "bsdtar"
    tool.parent.mkdir()
    tool.write_text(
        f"#!{sys.executable}\nimport sys, tarfile\nfile = sys.argv[3].removeprefix('@')\n"
        "if not tarfile.is_tarfile(file):\n    sys.exit('bsdtar: Unrecognized archive format')\n"
        "sys.stdout.buffer.write(open(file, 'rb').read())\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    return tool


def test_a_rar_is_read_through_bsdtar_and_the_remedy_is_told_where_that_lacks(tmp_path, bsdtar, monkeypatch):
    source = pack(tmp_path / "i.tar", FILES).rename(tmp_path / "i.rar")
    assert taken(source, tmp_path / "images") == ["a.jpg", "b.png"]
    source.write_bytes(b"no archive")
    with pytest.raises(BenchmarkError, match=r"i\.rar cannot be read: bsdtar: Unrecognized archive format"):
        take_images(source, WANTED, tmp_path / "more")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchmarkError, match=r"i\.rar is a \.rar.*`sudo apt install libarchive-tools`"):
        take_images(source, WANTED, tmp_path / "more")


@pytest.mark.skipif(shutil.which("bsdtar") is None, reason="bsdtar is not installed")
def test_bsdtar_itself_gives_the_members_of_an_archive(tmp_path):
    source = pack(tmp_path / "i.zip", FILES).rename(tmp_path / "i.rar")  # it goes by the content
    assert taken(source, tmp_path / "images") == ["a.jpg", "b.png"]


@pytest.mark.parametrize("name", ["../../a.jpg", "/tmp/a.jpg", "..\\a.jpg"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_no_path_in_an_archive_leaves_the_folder(tmp_path, name, kind):
    inside = tmp_path / "deep" / "deeper" / "images"
    take_images(pack(tmp_path / f"i.{kind}", {name: picture(), "b.jpg": picture()}), WANTED, inside)
    written = list(tmp_path.rglob("*.jpg"))
    assert written and all(path.parent == inside for path in written)


def test_links_in_an_archive_are_no_images(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(picture())
    with tarfile.open(tmp_path / "i.tar", "w") as archive:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(member)
    with pytest.raises(BenchmarkError, match="none of the 3 images"):
        take_images(tmp_path / "i.tar", WANTED, tmp_path / "images")


def test_broken_pictures_in_an_archive_are_told_and_not_written(tmp_path):
    source = pack(tmp_path / "i.zip", {"a.jpg": b"<html>", "b.jpg": picture()[:300], "c.jpg": picture()})
    outcomes = take_images(source, WANTED, tmp_path / "images")
    assert [outcomes[image].kind for image in WANTED] == ["broken", "broken", "there"]
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["c.jpg"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_of_a_picture_larger_than_the_cap_no_more_is_read_than_shows_that(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("cirlib.benchmarks.image_sources.MAX_BYTES", 500)
    source = pack(tmp_path / f"i.{kind}", {"a.jpg": picture() + b"\0" * 10_000})
    assert take_images(source, ["a"], tmp_path / "images") == {"a": ("broken", "larger than 0.0005 MB")}


@pytest.mark.parametrize("name", ["i.zip", "i.tar", "i.tar.gz", "i.parquet"])
@pytest.mark.parametrize("half", [False, True])
def test_a_damaged_archive_is_an_error_with_its_name(tmp_path, name, half):
    """No archive at all; or half a one, which a tar without compression has no mark to tell by."""
    source = pack(tmp_path / name, FILES)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2] if half and name != "i.tar" else b"other")
    with pytest.raises(BenchmarkError, match=name.replace(".", r"\.")):
        take_images(source, WANTED, tmp_path / "images")


@pytest.mark.parametrize(
    "table",
    [
        {"id": ["a", "z"], "img": [{"bytes": picture(), "path": None}, {"bytes": b"", "path": None}]},
        {"asin": ["a", "q"], "jpg": [picture(), picture()]},
        {"id": pa.array(["a"], pa.large_string()), "jpg": pa.array([picture()], pa.large_binary())},
        {"number": [7], "jpg": [picture()]},
    ],
)
def test_rows_of_a_parquet_file_are_known_by_a_column_of_ids(tmp_path, table):
    pq.write_table(pa.table(table), tmp_path / "i.parquet")
    assert list(take_images(tmp_path / "i.parquet", ["a", "7"], tmp_path / "images")) in (["a"], ["7"])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"id": "a", "one_image": picture(), "other": picture()},
            "expected one column of images, found one_image, other",
        ),
        ({"caption": "a", "reference": "b", "img": picture()}, "a row names a and b, expected one image"),
    ],
)
def test_a_table_that_does_not_say_which_image_is_which_is_refused(tmp_path, row, said):
    with pytest.raises(BenchmarkError, match=said):
        take_images(write_rows(tmp_path / "i.parquet", [row]), WANTED, tmp_path / "images")


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("later", [picture(colour="red"), b""])
def test_of_several_files_of_one_name_the_first_picture_counts(tmp_path, kind, later):
    source = pack(tmp_path / f"i.{kind}", {"a.jpg": picture(), "thumbs/a.jpg": later, "thumbs/a.png": later})
    assert taken(source, tmp_path / "images") == ["a.jpg"]
    assert (tmp_path / "images" / "a.jpg").read_bytes() == picture(colour="teal")


def test_a_broken_archive_beside_images_is_passed_over_and_told(tmp_path, capsys):
    source = write_folder(tmp_path / "mine", {"a.jpg": picture(), "other.zip": b"broken"})
    take_images(source, WANTED, tmp_path / "images")
    assert "other.zip cannot be read" in capsys.readouterr().out


def test_links_that_lead_nowhere_are_taken_anew(tmp_path):
    old, new = (write_folder(tmp_path / name, {"a.jpg": picture(colour=name)}) for name in ("red", "teal"))
    take_images(old, ["a"], tmp_path / "images")
    old.rename(tmp_path / "moved")
    (new / "b.jpg").symlink_to(new / "b.jpg")  # and one that leads to itself
    reason = "images/a.jpg is there, but is a link that leads nowhere"
    assert locate({"a": "a"}, tmp_path / "images") == {"a": reason}
    assert {image: one.kind for image, one in take_images(new, ["a", "b"], tmp_path / "images").items()} == {
        "a": "there",
        "b": "refused",
    }
    assert (tmp_path / "images" / "a.jpg").read_bytes() == picture(colour="teal")


@pytest.mark.parametrize("name", ["i.zip", "."])
def test_a_full_disk_is_not_told_as_a_damaged_archive(tmp_path, monkeypatch, name):
    pack(tmp_path / "i.zip", FILES)

    def full(content: bytes, path: Path) -> None:
        raise WriteError(f"{path} could not be written")

    monkeypatch.setattr("cirlib.benchmarks.image_sources.write_bytes", full)
    with pytest.raises(WriteError):
        take_images(tmp_path / name, WANTED, tmp_path / "images")


@pytest.mark.parametrize("name", ["nowhere", "i.7z", "mine"])
def test_a_source_without_any_wanted_image_says_what_is_expected(tmp_path, name):
    (tmp_path / "i.7z").write_bytes(b"7z")
    write_folder(tmp_path / "mine", {"z.jpg": picture()})
    with pytest.raises(BenchmarkError, match=r"none of the 3 images that are wanted, as 'a': expected a folder.*\.zip"):
        take_images(tmp_path / name, WANTED, tmp_path / "images")


def test_a_data_set_of_the_hub_comes_out_of_the_cache(tmp_path, monkeypatch):
    """Offline, as a machine without internet: the snapshot is laid out as the hub's client keeps it."""
    commit, cache = "0" * 40, tmp_path / "hub" / "datasets--someone--fashion"
    write_folder(cache / "snapshots" / commit, {"images/a.jpg": picture(), "b.jpg": picture()})
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert taken("hf://datasets/someone/fashion", tmp_path / "images") == ["a.jpg", "b.jpg"]


TWINS = {"bags/001.jpg": picture(colour="red"), "shoes/001.jpg": picture(colour="blue")}


def sources(tmp_path: Path, files: dict[str, bytes]) -> list[Path]:
    packed = [pack(tmp_path / f"i{ending}", files) for ending in (".zip", ".tar.gz", ".parquet")]
    return [*packed, write_folder(tmp_path / "mine", files)]


def test_one_name_in_two_folders_is_refused_by_every_source(tmp_path):
    for number, source in enumerate(sources(tmp_path, TWINS | {"b.jpg": picture()})):
        outcomes = take_images(source, ["001", "b"], tmp_path / str(number))
        assert outcomes["001"].kind == "refused" and "bags/001.jpg and " in outcomes["001"].reason
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["b.jpg"]


def test_ids_with_their_folder_and_ending_are_found_in_every_source(tmp_path):
    for number, source in enumerate(sources(tmp_path, {f"photos/{name}": one for name, one in TWINS.items()})):
        outcomes = take_images(source, ["bags/001.jpg", "SHOES/001"], tmp_path / str(number))
        assert [outcome.kind for outcome in outcomes.values()] == ["there", "there"]
        files = locate({"a": "bags/001.jpg", "b": "SHOES/001"}, tmp_path / str(number))
        assert [Path(file).read_bytes() for file in files.values()] == list(TWINS.values())


def test_equal_files_of_one_name_are_one_in_every_source(tmp_path):
    for number, source in enumerate(sources(tmp_path, {"shirt/a.jpg": picture(), "toptee/a.jpg": picture()})):
        assert taken(source, tmp_path / str(number)) == ["a.jpg"]


def test_the_file_of_the_upper_folder_counts_whatever_the_order_in_an_archive(tmp_path):
    files = {
        "x/thumbs/a.png": picture("PNG", colour="red"),
        "x/small/a.jpg": picture(colour="blue"),
        "x/a.jpg": picture(),
    }
    for number, source in enumerate(sources(tmp_path, files)):
        assert taken(source, tmp_path / str(number)) == ["a.jpg"]
        assert (tmp_path / str(number) / "a.jpg").read_bytes() == picture()


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats_leave_archives_with_their_own_ending(tmp_path, kind):
    (name,) = taken(pack(tmp_path / "i.zip", {"a.jpg": picture(kind)}), tmp_path / "images")
    assert Image.open(tmp_path / "images" / name).format == kind


def test_what_is_not_read_is_said_where_nothing_else_is_there(tmp_path):
    for number, source in enumerate(sources(tmp_path, {"a.heic": b"ftypheic"})):
        try:
            said = take_images(source, WANTED, tmp_path / str(number))["a"].reason
        except BenchmarkError as error:  # of a folder it is seen without opening the file
            said = str(error)
        assert "not of a format that is read (JPEG" in said
