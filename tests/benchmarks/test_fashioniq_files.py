"""FashionIQ's published files: fetched, checked, and their lists of links."""

import hashlib
import json
import re

import pooch
import pytest

from cirlib.benchmarks import BenchmarkError, fashioniq_files
from cirlib.benchmarks.fashioniq_files import fetch_annotations, published_files, read_links

NAME = "captions/cap.dress.val.json"
CONTENT = {NAME: b"[]", "image_url/broken_links/a.jpg": b"picture"}


@pytest.fixture
def publication(httpserver, tmp_path, monkeypatch):
    """Two published files on two servers."""
    sources = {}
    for name, content in CONTENT.items():
        place = name.split("/")[0]
        httpserver.expect_request(f"/{place}/{name}").respond_with_data(content)
        files = {name: hashlib.sha256(content).hexdigest()}
        sources[place] = {"base": httpserver.url_for(f"/{place}/"), "files": files}
    (tmp_path / "published.json").write_text(json.dumps(sources))
    monkeypatch.setattr(fashioniq_files, "PUBLISHED", tmp_path / "published.json")
    return httpserver


def test_files_that_are_not_there_are_fetched_once(publication, tmp_path, write_json):
    fetch_annotations(tmp_path / "raw")
    assert {name: (tmp_path / "raw" / name).read_bytes() for name in CONTENT} == CONTENT
    write_json(tmp_path / "raw" / NAME, [1])  # what is there is left as it is
    fetch_annotations(tmp_path / "raw")
    assert (tmp_path / "raw" / NAME).read_text() == "[1]" and len(publication.log) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [({"response_data": b"[1]"}, "SHA256 hash"), ({"status": 404}, r"404.*Put FashionIQ's captions")],
)
def test_what_is_not_the_published_file_is_refused_and_not_kept(publication, tmp_path, answer, said):
    publication.clear_all_handlers()
    publication.expect_request(re.compile(".*")).respond_with_data(**answer)
    with pytest.raises(BenchmarkError, match=rf"captions/cap\.dress\.val\.json could not be fetched: .*{said}"):
        fetch_annotations(tmp_path / "raw")
    assert not [path for path in (tmp_path / "raw").rglob("*") if path.is_file()]


def test_the_real_files_are_the_published_ones(real_data):
    root = real_data("fashioniq")
    registry = published_files(root).registry
    assert len(registry) == 34
    assert {name: pooch.file_hash(str(root / name)) for name in registry} == registry


def test_every_real_image_has_a_link(real_data):
    root = real_data("fashioniq")
    links = read_links(root)
    splits = [json.loads(file.read_text()) for file in (root / "image_splits").glob("split.*.json")]
    assert {image for ids in splits for image in ids} <= links.keys()
    assert all(re.fullmatch(r"https?://\S+", link) for found in links.values() for link in found)


def write_links(root, **lists: str) -> None:
    (root / "image_url").mkdir()
    for category, text in lists.items():
        (root / "image_url" / f"asin2url.{category}.txt").write_text(text)


def test_links_of_several_lists_are_joined_without_repeats(tmp_path):
    dress = "a \t http://x/1.jpg\nb \t http://x/2.jpg\n\n"
    write_links(tmp_path, dress=dress, shirt="a http://x/1.jpg\nb http://x/3.jpg\n")
    assert read_links(tmp_path) == {"a": ["http://x/1.jpg"], "b": ["http://x/2.jpg", "http://x/3.jpg"]}


@pytest.mark.parametrize("line", ["a", "a http://x/1.jpg more", "a ftp://x/1.jpg"])
def test_a_line_that_is_no_link_is_named(tmp_path, line):
    write_links(tmp_path, dress=f"b http://x/2.jpg\n{line}\n")
    with pytest.raises(BenchmarkError, match=rf"asin2url\.dress\.txt: expected an image id and its link.*{line}"):
        read_links(tmp_path)


def test_lists_that_are_not_there_are_named(tmp_path):
    with pytest.raises(BenchmarkError, match=r"asin2url\.\*\.txt"):
        read_links(tmp_path)
