"""Images out of folders, archives, parquet files and data sets of the hub."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_pictures import picture

from cirlib.benchmarks import BenchmarkError
from cirlib.benchmarks.image_files import scan_images
from cirlib.benchmarks.image_sources import take_images
from cirlib.study.errors import WriteError

WANTED = ["a", "b", "c"]


FILES = {"x/a.jpg": picture(), "x/y/b.png": picture("PNG", colour="navy"), "other.jpg": picture(), "x/notes.txt": b"no"}


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
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


@pytest.mark.parametrize("name", ["i.zip", "i.tar", "i.tar.gz", "i.tgz"])
def test_only_the_wanted_images_leave_an_archive(tmp_path, name):
    write = write_zip if name.endswith("zip") else write_tar
    assert taken(write(tmp_path / name, FILES), tmp_path / "images") == ["a.jpg", "b.png"]
    assert (tmp_path / "images" / "a.jpg").read_bytes() == FILES["x/a.jpg"]


def test_images_of_a_folder_are_linked_not_copied(tmp_path):
    source = write_folder(tmp_path / "mine", FILES)
    assert taken(source, tmp_path / "images") == ["a.jpg", "b.png"]
    assert (tmp_path / "images" / "a.jpg").resolve() == (source / "x" / "a.jpg").resolve()
    assert taken(source, tmp_path / "images") == ["a.jpg", "b.png"]  # once more, over the links


def test_archives_in_a_folder_give_what_its_files_do_not(tmp_path):
    source = write_folder(tmp_path / "mine", {"a.jpg": picture(colour="red")})
    write_zip(source / "rest.zip", {"a.jpg": picture(colour="blue"), "b.jpg": picture()})
    assert taken(source, tmp_path / "images") == ["a.jpg", "b.jpg"]
    assert (tmp_path / "images" / "a.jpg").read_bytes() == picture(colour="red")


@pytest.mark.parametrize("name", ["../../a.jpg", "/tmp/a.jpg", "..\\a.jpg"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_no_path_in_an_archive_leaves_the_folder(tmp_path, name, kind):
    inside = tmp_path / "deep" / "deeper" / "images"
    write = write_zip if kind == "zip" else write_tar
    source = write(tmp_path / f"i.{kind}", {name: picture(), "b.jpg": picture()})
    take_images(source, WANTED, inside)
    written = [path for path in tmp_path.rglob("*.jpg")]
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
    source = write_zip(tmp_path / "i.zip", {"a.jpg": b"<html>", "b.jpg": picture()[:300], "c.jpg": picture()})
    outcomes = take_images(source, WANTED, tmp_path / "images")
    assert [outcomes[image].kind for image in WANTED] == ["broken", "broken", "there"]
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["c.jpg"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_of_a_picture_larger_than_the_cap_no_more_is_read_than_shows_that(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("cirlib.benchmarks.image_sources.MAX_BYTES", 500)
    write = write_zip if kind == "zip" else write_tar
    source = write(tmp_path / f"i.{kind}", {"a.jpg": picture() + b"\0" * 10_000})
    assert take_images(source, ["a"], tmp_path / "images") == {"a": ("broken", "larger than 0.0005 MB")}


@pytest.mark.parametrize("name", ["i.zip", "i.tar", "i.tar.gz", "i.parquet"])
@pytest.mark.parametrize("content", [b"", b"no archive at all", None])
def test_a_damaged_archive_is_an_error_with_its_name(tmp_path, name, content):
    path = tmp_path / name
    if content is None and name == "i.tar":
        pytest.skip("a tar without compression has no mark by which its first half could be told from a whole one")
    if content is None:  # the first half of a real one
        write = {"zip": write_zip, "uet": write_parquet}.get(name[-3:], write_tar)
        write(path, FILES)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(content)
    with pytest.raises(BenchmarkError, match=name.replace(".", r"\.")):
        take_images(path, WANTED, tmp_path / "images")


def write_parquet(path: Path, files: dict[str, bytes]) -> Path:
    rows = [{"image": {"bytes": content, "path": name}} for name, content in files.items()]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_rows_of_a_parquet_file_are_known_by_their_path(tmp_path):
    assert taken(write_parquet(tmp_path / "i.parquet", FILES), tmp_path / "images") == ["a.jpg", "b.png"]


def test_rows_of_a_parquet_file_are_known_by_a_column_of_ids(tmp_path):
    rows = [{"id": "a", "img": {"bytes": picture(), "path": None}}, {"id": "z", "img": {"bytes": b"", "path": None}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "i.parquet")
    assert taken(tmp_path / "i.parquet", tmp_path / "images") == ["a.jpg"]
    pq.write_table(pa.table({"asin": ["b", "q"], "jpg": [picture(), picture()]}), tmp_path / "plain.parquet")
    assert "b.jpg" in taken_more(tmp_path / "plain.parquet", tmp_path / "images")


def taken_more(source: Path, folder: Path) -> list[str]:
    take_images(source, WANTED, folder)
    return sorted(path.name for path in folder.iterdir())


def test_a_table_of_several_images_a_row_is_refused(tmp_path):
    rows = [
        {
            "reference_id": "a",
            "target_id": "b",
            "reference_image": picture(colour="red"),
            "target_image": picture(colour="blue"),
        }
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "i.parquet")
    with pytest.raises(BenchmarkError, match="expected one column of images, found reference_image, target_image"):
        take_images(tmp_path / "i.parquet", WANTED, tmp_path / "images")


def test_a_row_that_names_several_images_is_refused(tmp_path):
    rows = [{"caption": "a", "reference": "b", "img": picture()}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "i.parquet")
    with pytest.raises(BenchmarkError, match="a row names a and b, expected one image"):
        take_images(tmp_path / "i.parquet", WANTED, tmp_path / "images")


def test_ids_may_be_numbers_or_long_texts(tmp_path):
    for name, ids in (("numbers", pa.array([7])), ("texts", pa.array(["7"], pa.large_string()))):
        table = pa.table({"id": ids, "jpg": pa.array([picture()], pa.large_binary())})
        pq.write_table(table, tmp_path / f"{name}.parquet")
        assert list(take_images(tmp_path / f"{name}.parquet", ["7"], tmp_path / name)) == ["7"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("later", [picture(colour="red"), b""])
def test_of_several_files_of_one_name_the_first_picture_counts(tmp_path, kind, later):
    write = write_zip if kind == "zip" else write_tar
    source = write(tmp_path / f"i.{kind}", {"a.jpg": picture(), "thumbs/a.jpg": later, "thumbs/a.png": later})
    assert take_images(source, ["a"], tmp_path / "images")["a"].kind == "there"
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["a.jpg"]
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
    assert scan_images(tmp_path / "images") == {}
    assert list(take_images(new, ["a", "b"], tmp_path / "images")) == ["a"]
    assert (tmp_path / "images" / "a.jpg").read_bytes() == picture(colour="teal")


def test_a_source_without_any_wanted_image_says_what_is_expected(tmp_path):
    with pytest.raises(BenchmarkError, match=r"none of the 3 images that are wanted, as 'a'.*\.jpg"):
        take_images(write_folder(tmp_path / "mine", {"z.jpg": picture()}), WANTED, tmp_path / "images")


@pytest.mark.parametrize("name", ["i.zip", "mine"])
def test_a_full_disk_is_not_told_as_a_damaged_archive(tmp_path, monkeypatch, name):
    (tmp_path / "mine").mkdir()
    write_zip(tmp_path / "mine" / "i.zip", FILES)
    write_zip(tmp_path / "i.zip", FILES)

    def full(content: bytes, path: Path) -> None:
        raise WriteError(f"{path} could not be written")

    monkeypatch.setattr("cirlib.benchmarks.downloads.write_bytes", full)
    with pytest.raises(WriteError):
        take_images(tmp_path / name, WANTED, tmp_path / "images")


@pytest.mark.parametrize(("name", "said"), [("nowhere", "expected a folder, an archive"), ("i.rar", r"\.zip, \.tar")])
def test_what_is_no_source_is_refused(tmp_path, name, said):
    (tmp_path / "i.rar").write_bytes(b"Rar!")
    with pytest.raises(BenchmarkError, match=said):
        take_images(tmp_path / name, WANTED, tmp_path / "images")


def test_a_data_set_of_the_hub_comes_out_of_the_cache(tmp_path, monkeypatch):
    """Offline, as a machine without internet: the snapshot is laid out as the hub's client keeps it."""
    commit, cache = "0" * 40, tmp_path / "hub" / "datasets--someone--fashion"
    write_folder(cache / "snapshots" / commit, {"images/a.jpg": picture(), "b.jpg": picture()})
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert taken("hf://datasets/someone/fashion", tmp_path / "images") == ["a.jpg", "b.jpg"]
