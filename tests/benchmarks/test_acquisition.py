"""The study's files: taken or fetched where they are missing, then looked at."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_pictures import picture

from cirlib.benchmarks import BenchmarkError, acquisition, fashioniq_files
from cirlib.benchmarks.acquisition import acquire, audit_study, missing_images
from cirlib.benchmarks.downloads import DownloadOutcome
from cirlib.benchmarks.splits import load_splits
from cirlib.study.parameters import Study
from cirlib.study.pictures import open_rgb


@pytest.fixture
def gap(custom_stage, tmp_path):
    """A stage whose data lack three images, kept aside: one of val, one that train uses, one that nothing uses."""
    stage = custom_stage("data_prep")
    aside = tmp_path / "aside"
    aside.mkdir()
    for image in ("hat-val-1", "shoe-train-0", "shoe-train-8"):
        (stage.images / "images" / f"{image}.jpg").rename(aside / f"{image}.jpg")
    return stage, aside


def with_data(stage, **data):
    study = stage.study.model_dump()
    study["data"] |= data
    return type(stage)(**vars(stage) | {"study": Study.model_validate(study)})


def test_what_the_study_uses_and_lacks_is_taken_from_where_it_says(gap, capsys):
    stage, aside = gap
    assert sorted(missing_images(stage)) == ["hat-val-1", "shoe-train-0"]
    assert missing_images(with_data(stage, categories=["hat"])) == ["hat-val-1"]
    acquire(with_data(stage, images=str(aside)), np.ravel)
    assert missing_images(stage) == []
    assert "2 of 2 images taken from" in capsys.readouterr().out
    assert not (stage.images / "images" / "shoe-train-8.jpg").exists()
    acquire(with_data(stage, images="/nowhere"), np.ravel)  # of which nothing is asked where nothing is missing


def test_a_relative_source_is_the_projects(gap, tmp_path, capsys):
    stage, aside = gap
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.write(aside / "hat-val-1.jpg")
    acquire(with_data(stage, images="some.zip"), np.ravel)
    assert missing_images(stage) == ["shoe-train-0"]
    assert "1 of 2 images taken from some.zip, 1 not in it" in capsys.readouterr().out


def test_where_nothing_says_where_from_nothing_is_done_and_the_study_stops_with_the_count(gap):
    stage, _ = gap
    acquire(stage, np.ravel)
    with pytest.raises(BenchmarkError, match=r"1 of 6 gallery images are missing.*data.allow_missing"):
        load_splits(stage)


def test_an_image_that_cannot_be_decoded_counts_as_missing_in_every_later_stage(custom_stage):
    stage = custom_stage("data_prep")
    (stage.images / "images" / "shoe-val-5.jpg").write_bytes(b"<html>")
    report = audit_study(stage)
    assert list(report.undecodable) == ["shoe-val-5"]
    with pytest.raises(BenchmarkError, match=r"'shoe-val-5': cannot be decoded"):
        load_splits(stage)
    allowed = load_splits(with_data(stage, allow_missing=True)).reported["shoe"]
    assert (len(allowed.gallery), allowed.complete) == (5, False)


def test_the_report_reads_as_a_table(gap):
    stage, _ = gap
    (stage.images / "images" / "hat-val-2.jpg").write_bytes(b"")
    table = audit_study(stage).overview()
    assert table.columns.tolist() == ["train hat", "train shoe", "val hat", "val shoe"]
    assert table.loc[["queries", "missing", "undecodable", "exact groups"], "val hat"].tolist() == ["3", "1", "1", "0"]
    assert table.loc[["missing", "exact groups"], "train shoe"].tolist() == ["1", ""]


def test_a_catalogue_is_drawn_with_the_studys_size_and_seed(custom_stage, tmp_path):
    drawing = {
        "train_images": 25, "train_triplets": 3, "val_queries": 2, "gallery_size": 25, "pairs": 5,
        "family_size": 25,
    }  # fmt: skip
    stage = custom_stage(
        "data_prep", data={"root": None, "seed": 5}, models={"image_size": 32}, data_prep={"drawing": drawing}
    )
    acquire(stage, np.ravel)
    written = json.loads((stage.data / "drawn" / "drawn.json").read_text())
    assert {name: written[name] for name in drawing} == drawing
    assert (written["seed"], written["image_size"]) == (5, 32)
    splits = load_splits(stage)
    images = splits.images()
    assert [len(part.gallery) for part in splits.reported.values()] == [25] * 3
    assert [len(splits.train[name].triplets) + len(part.triplets) for name, part in splits.dev.items()] == [3] * 3
    assert {open_rgb(path).size for path in images.values()} == {(32, 32)}
    times = {path: path.stat().st_mtime_ns for path in images.values()}
    acquire(stage, np.ravel)
    assert {path: path.stat().st_mtime_ns for path in images.values()} == times


def test_a_study_that_fetches_gets_annotations_and_images_from_their_servers(
    small_fashioniq, custom_stage, monkeypatch, capsys, httpserver
):
    """All of it over HTTP: every published file, links that work, a dead one, a dead one whose picture is shipped."""
    val = [f"{c}-val-{i}" for c in ("dress", "shirt", "toptee") for i in range(5)]
    ids = [*val, "both", *(f"{c}-train-{i}" for c in ("dress", "shirt", "toptee") for i in range(4))]
    dead = {"both", "dress-val-4"}
    links = small_fashioniq / "image_url" / "asin2url.dress.txt"
    links.parent.mkdir()
    links.write_text("".join(f"{i} \t {httpserver.url_for('/images/' + i)}\n" for i in ids))
    (links.parent / "broken_links").mkdir()
    (links.parent / "broken_links" / "both.jpg").write_bytes(picture())
    files = {str(f.relative_to(small_fashioniq)): f.read_bytes() for f in small_fashioniq.rglob("*") if f.is_file()}
    for name, content in files.items():
        httpserver.expect_request(f"/files/{name}").respond_with_data(content)
    for image in ids:
        answer = {"status": 404} if image in dead else {"response_data": picture()}
        httpserver.expect_request(f"/images/{image}").respond_with_data(**answer)
    published = small_fashioniq.parent / "published.json"
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    published.write_text(json.dumps({"all": {"base": httpserver.url_for("/files/"), "files": digests}}))
    monkeypatch.setattr(fashioniq_files, "PUBLISHED", published)
    stage = with_data(custom_stage("data_prep"), benchmark="fashioniq", root="fetched", fetch=True)

    acquire(stage, np.ravel)
    raw = stage.images
    assert {name: (raw / name).read_bytes() for name in files} == files
    assert f"{len(ids) - 1} of {len(ids)} images fetched, 1 dead" in capsys.readouterr().out
    listed = (raw / "dead_links.csv").read_text().splitlines()
    assert listed[0] == "image,kind,reason"
    assert sorted(line.split(",")[:2] for line in listed[1:]) == [[image, "dead"] for image in sorted(dead)]
    assert missing_images(stage) == ["dress-val-4"]
    httpserver.clear_log()
    acquire(stage, np.ravel)
    assert httpserver.log == []  # nothing that is there or dead is asked for again


def test_before_hours_of_links_a_sample_says_what_they_will_bring(tmp_path, monkeypatch, capsys):
    asked: list[set[str]] = []

    def fetch(links: dict[str, list[str]], *_files: Path) -> dict[str, DownloadOutcome]:
        asked.append(set(links))
        return {image: DownloadOutcome("there" if int(image) % 4 else "dead") for image in links}

    monkeypatch.setattr(acquisition, "fetch_images", fetch)
    monkeypatch.setattr(acquisition, "read_links", lambda _root: {})
    ids = [str(number) for number in range(4000)]
    outcomes = acquisition._fetch_linked(tmp_path, ids)
    found = sum(int(image) % 4 > 0 for image in asked[0])
    assert f"of 100 images drawn at random {found} come by their link" in capsys.readouterr().out
    assert len(asked[0]) == 100 and asked[0].isdisjoint(asked[1]) and outcomes.keys() == set(ids)
