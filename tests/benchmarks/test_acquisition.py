"""The study's files: taken or fetched where they are missing, then looked at."""

from __future__ import annotations

import hashlib
import json
import zipfile

import pytest
from misbehaving_server import picture

from cirlib.benchmarks import BenchmarkError, acquisition, fashioniq_files
from cirlib.benchmarks.acquisition import (
    expectation,
    inspect,
    leaks,
    missing_images,
    missing_table,
    obtain,
    overview,
    write_audit,
)
from cirlib.benchmarks.downloads import Outcome
from cirlib.models.prepared import Prepared
from cirlib.study.errors import ParameterError
from cirlib.study.parameters import Study, load_study
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


def test_only_what_the_study_uses_is_missing(gap):
    stage, _ = gap
    assert sorted(missing_images(stage)) == ["hat-val-1", "shoe-train-0"]
    assert missing_images(with_data(stage, categories=["hat"])) == ["hat-val-1"]


def test_missing_images_are_taken_from_where_the_study_says(gap, capsys):
    stage, aside = gap
    obtain(with_data(stage, images=str(aside)))
    assert missing_images(stage) == []
    assert "2 of 2 images taken from" in capsys.readouterr().out
    assert not (stage.images / "images" / "shoe-train-8.jpg").exists()


def test_a_relative_source_is_the_projects(gap, tmp_path, capsys):
    stage, aside = gap
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.write(aside / "hat-val-1.jpg")
    obtain(with_data(stage, images="some.zip"))
    assert missing_images(stage) == ["shoe-train-0"]
    assert "1 of 2 images taken from some.zip, 1 not in it" in capsys.readouterr().out


def test_nothing_is_asked_of_a_source_when_nothing_is_missing(custom_stage):
    obtain(with_data(custom_stage("data_prep"), images="/nowhere"))


def test_where_nothing_says_where_from_nothing_is_done_and_the_study_stops_with_the_count(gap):
    stage, _ = gap
    obtain(stage)
    with pytest.raises(BenchmarkError, match=r"1 of 6 gallery images are missing.*data.allow_missing"):
        Prepared(stage).splits  # noqa: B018


def test_a_dead_link_gives_way_to_the_picture_that_the_data_set_ships(gap, monkeypatch):
    stage, aside = gap
    root = stage.images
    (root / "image_url" / "broken_links").mkdir(parents=True)
    (root / "image_url" / "asin2url.hat.txt").write_text("hat-val-1 http://host/1.jpg\n")
    (aside / "hat-val-1.jpg").rename(root / "image_url" / "broken_links" / "hat-val-1.jpg")
    asked = {}

    def fetch(links, folder, dead):
        asked.update(links)
        return {image: Outcome("dead", "404") for image in links}

    monkeypatch.setattr(acquisition, "fetch_images", fetch)
    outcomes = acquisition.fetch_linked(root, ["hat-val-1", "shoe-train-0"])
    assert asked == {"hat-val-1": ["http://host/1.jpg"], "shoe-train-0": []}
    assert {image: outcome.kind for image, outcome in outcomes.items()} == {
        "hat-val-1": "there",
        "shoe-train-0": "dead",
    }
    assert missing_images(stage) == ["shoe-train-0"]


def test_only_fashioniq_can_be_fetched(tmp_path):
    (tmp_path / "params.yaml").write_text("name: x\ndata: {benchmark: custom, root: raw, fetch: true}\n")
    with pytest.raises(ParameterError, match="fetch must be false for custom"):
        load_study(tmp_path / "params.yaml")


def test_an_image_that_cannot_be_decoded_counts_as_missing_in_every_later_stage(custom_stage):
    stage = custom_stage("data_prep")
    (stage.images / "images" / "shoe-val-5.jpg").write_bytes(b"<html>")
    report = inspect(stage)
    assert list(report.undecodable) == ["shoe-val-5"]
    with pytest.raises(BenchmarkError, match=r"'shoe-val-5': the content is not an image"):
        Prepared(stage).splits  # noqa: B018
    allowed = Prepared(with_data(stage, allow_missing=True)).splits.reported["shoe"]
    assert (len(allowed.gallery), allowed.complete) == (5, False)


def test_the_report_lists_every_gap_with_its_reason(gap, tmp_path):
    stage, _ = gap
    (stage.images / "images" / "hat-val-2.jpg").write_bytes(b"")
    report = inspect(stage)
    write_audit(report, tmp_path)
    rows = [line.split(",")[:2] for line in (tmp_path / "missing_images.csv").read_text().splitlines()[1:]]
    assert sorted(rows) == [["hat-val-1", "missing"], ["hat-val-2", "undecodable"], ["shoe-train-0", "missing"]]
    assert missing_table(report)["reason"].str.len().min() > 10
    audit = (tmp_path / "audit.csv").read_text()
    assert audit.count("\n") == 5 and "lost_queries" in audit
    assert (tmp_path / "overlaps.csv").is_file()
    table = overview(report)
    assert table.columns.tolist() == ["train hat", "train shoe", "val hat", "val shoe"]
    assert table.loc[["queries", "missing", "undecodable", "exact groups"], "val hat"].tolist() == ["3", "1", "1", "0"]
    assert table.loc[["missing", "exact groups"], "train shoe"].tolist() == ["1", ""]


def test_leaks_are_the_pairs_that_share_images(custom_stage):
    stage = custom_stage("data_prep")
    assert leaks(inspect(stage)).empty
    split = stage.images / "image_splits" / "split.hat.val.json"
    split.write_text(json.dumps([*json.loads(split.read_text()), "shoe-train-2", "shoe-train-3"]))
    table = leaks(inspect(stage))
    assert set(table["galleries"]) == {2} and set(table["triplets_in_gallery"]) == {2}


def test_counts_that_are_not_the_published_ones_are_said(custom_stage, small_fashioniq):
    assert expectation(inspect(custom_stage("data_prep"))) == "No counts are published for these data."
    stage = with_data(custom_stage("data_prep"), benchmark="fashioniq", root=str(small_fashioniq))
    assert "val dress: queries 2, expected 2017." in expectation(inspect(stage))


def test_nothing_is_drawn_unless_the_study_asks(custom_stage):
    stage = custom_stage("data_prep")
    before = sorted(stage.images.rglob("*"))
    obtain(stage)
    assert sorted(stage.images.rglob("*")) == before


def test_a_catalogue_is_drawn_with_the_studys_size_and_seed(custom_stage, tmp_path):
    drawing = {
        "train_triplets": 3, "val_queries": 2, "gallery_size": 5, "alignment_pairs": 2, "pretraining_pairs": 3,
        "family_size": 3,
    }  # fmt: skip
    stage = custom_stage(
        "data_prep", seed=5, data={"root": "drawn"}, models={"image_size": 32}, data_prep={"drawing": drawing}
    )
    obtain(stage)
    written = json.loads((tmp_path / "drawn" / "drawn.json").read_text())
    assert {name: written[name] for name in drawing} == drawing
    assert (written["seed"], written["image_size"]) == (5, 32)
    ready = Prepared(stage)
    assert (len(ready.pairs("alignment")), len(ready.pairs("pretraining"))) == (2, 3)
    images = ready.images
    assert all(path.is_file() for path in images.values())
    assert {open_rgb(path).size for path in images.values()} == {(32, 32)}
    times = {path: path.stat().st_mtime_ns for path in images.values()}
    obtain(stage)
    assert {path: path.stat().st_mtime_ns for path in images.values()} == times


def test_a_study_that_fetches_gets_annotations_and_images_from_their_servers(
    small_fashioniq, custom_stage, monkeypatch, capsys, server
):
    """All of it over HTTP: every published file, a link that works, one that is dead, one whose picture is shipped."""
    val = [f"{c}-val-{i}" for c in ("dress", "shirt", "toptee") for i in range(5)]
    ids = [*val, "both", *(f"{c}-train-{i}" for c in ("dress", "shirt", "toptee") for i in range(4))]
    links = small_fashioniq / "image_url" / "asin2url.dress.txt"
    links.parent.mkdir()
    links.write_text(
        "".join(f"{i} \t {server.url}/{'gone' if i in ('both', 'dress-val-4') else 'good'}/{i}\n" for i in ids)
    )
    (links.parent / "broken_links").mkdir()
    (links.parent / "broken_links" / "both.jpg").write_bytes(picture())
    files = {str(f.relative_to(small_fashioniq)): f.read_bytes() for f in small_fashioniq.rglob("*") if f.is_file()}
    server.files = {f"/files/{name}": content for name, content in files.items()}
    published = small_fashioniq.parent / "published.json"
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    published.write_text(json.dumps({"all": {"base": f"{server.url}/files/", "files": digests}}))
    monkeypatch.setattr(fashioniq_files, "PUBLISHED", published)
    stage = with_data(custom_stage("data_prep"), benchmark="fashioniq", root="fetched", fetch=True)

    obtain(stage)
    raw = stage.images
    assert {
        str(f.relative_to(raw)): f.read_bytes() for f in raw.rglob("*") if str(f.relative_to(raw)) in files
    } == files
    assert f"{len(ids) - 1} of {len(ids)} images fetched, 1 dead" in capsys.readouterr().out
    dead = (raw / "dead_links.csv").read_text().splitlines()[1:]
    assert sorted(dead) == [f"{image},dead,the server answers 404 Not Found" for image in ("both", "dress-val-4")]
    assert missing_images(stage) == ["dress-val-4"]
    asked = dict(server.asked)
    obtain(stage)
    assert dict(server.asked) == asked  # nothing that is there or dead is asked for again
