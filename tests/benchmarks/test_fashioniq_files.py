"""FashionIQ's published files: fetched, checked, and their lists of links."""

from __future__ import annotations

import hashlib
import json
import re

import httpx
import pytest

from cirlib.benchmarks import BenchmarkError, fashioniq_files
from cirlib.benchmarks.fashioniq_files import changed_files, fetch_annotations, published, read_links

CONTENT = {"captions/cap.dress.val.json": b"[]", "image_url/broken_links/a.jpg": b"picture"}


@pytest.fixture
def small_publication(tmp_path, monkeypatch):
    """Two published files on two servers; a dictionary stands for what the servers have."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    sources = {
        "annotations": {"base": "https://one/", "files": {k: v for k, v in digests.items() if k[0] == "c"}},
        "links": {"base": "https://two/", "files": {k: v for k, v in digests.items() if k[0] == "i"}},
    }
    (tmp_path / "published.json").write_text(json.dumps(sources))
    monkeypatch.setattr(fashioniq_files, "PUBLISHED", tmp_path / "published.json")
    return {"https://one/captions/cap.dress.val.json": b"[]", "https://two/image_url/broken_links/a.jpg": b"picture"}


def test_files_that_are_not_there_are_fetched_once(small_publication, tmp_path):
    asked = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return small_publication[url]

    fetch_annotations(tmp_path / "raw", fetch)
    fetch_annotations(tmp_path / "raw", fetch)
    assert asked == list(small_publication)
    assert {name: (tmp_path / "raw" / name).read_bytes() for name in CONTENT} == CONTENT


def test_another_content_than_the_published_is_refused_and_not_kept(small_publication, tmp_path):
    with pytest.raises(BenchmarkError, match=r"https://one/captions/cap\.dress\.val\.json has the SHA-256"):
        fetch_annotations(tmp_path / "raw", lambda url: b"[1]")
    assert not list((tmp_path / "raw").rglob("*.json*"))


def test_a_file_that_cannot_be_had_is_named_with_the_way_out(small_publication, tmp_path):
    def fetch(url: str) -> bytes:
        raise httpx.ConnectError(f"{url} could not be fetched: no route")

    with pytest.raises(BenchmarkError, match=r"no route\. Put FashionIQ's captions/cap\.dress\.val\.json into"):
        fetch_annotations(tmp_path, fetch)


def test_files_that_differ_from_the_published_are_named(small_publication, tmp_path):
    fetch_annotations(tmp_path, small_publication.__getitem__)
    assert changed_files(tmp_path) == []
    (tmp_path / "captions" / "cap.dress.val.json").write_text("[ ]")
    assert changed_files(tmp_path) == ["captions/cap.dress.val.json"]


def test_the_real_files_are_the_published_ones(real_data):
    root = real_data("fashioniq")
    names = [name for name, _, _ in published()]
    assert len(names) == 34 and all((root / name).is_file() for name in names)
    assert changed_files(root) == []


def test_every_real_image_has_a_link(real_data):
    root = real_data("fashioniq")
    links = read_links(root)
    splits = [json.loads(file.read_text()) for file in (root / "image_splits").glob("split.*.json")]
    assert {image for ids in splits for image in ids} <= links.keys()
    assert all(re.fullmatch(r"https?://\S+", link) for found in links.values() for link in found)


def test_links_of_several_lists_are_joined_without_repeats(tmp_path):
    (tmp_path / "image_url").mkdir()
    (tmp_path / "image_url" / "asin2url.dress.txt").write_text("a \t http://x/1.jpg\nb \t http://x/2.jpg\n\n")
    (tmp_path / "image_url" / "asin2url.shirt.txt").write_text("a http://x/1.jpg\nb http://x/3.jpg\n")
    assert read_links(tmp_path) == {"a": ["http://x/1.jpg"], "b": ["http://x/2.jpg", "http://x/3.jpg"]}


@pytest.mark.parametrize("line", ["a", "a http://x/1.jpg more", "a ftp://x/1.jpg"])
def test_a_line_that_is_no_link_is_named(tmp_path, line):
    (tmp_path / "image_url").mkdir()
    (tmp_path / "image_url" / "asin2url.dress.txt").write_text(f"b http://x/2.jpg\n{line}\n")
    with pytest.raises(BenchmarkError, match=r"asin2url\.dress\.txt, line 2: expected an image id and its link"):
        read_links(tmp_path)


def test_lists_that_are_not_there_are_named(tmp_path):
    with pytest.raises(BenchmarkError, match=r"asin2url\.\*\.txt"):
        read_links(tmp_path)
