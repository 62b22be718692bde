"""Search with a study's models: the same ranking as the study's own, leanings, refusals, uploads; and the page."""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cirlib.app.search import MOST_WORDS, Search, SearchError, open_upload
from cirlib.app.search_page import SearchPage
from cirlib.models.prepared import open_prepared
from cirlib.retrieval.result_files import read_ranks
from cirlib.study.errors import StageError
from cirlib.study.parameters import load_study
from cirlib.study.stage import Stage

METHODS = ["image_only", "text_only", "sum", "slerp", "qformer", "qformer_hard_negatives"]


def stage_of(root: Path) -> Stage:
    return Stage("search", load_study(root / "params.yaml"), root, root / "none", root / "none", {})


@pytest.fixture(scope="module")
def search(small_project) -> Search:
    return Search(open_prepared(stage_of(small_project)))


@pytest.mark.slow
def test_it_searches_with_every_baseline_and_every_trained_qformer(search):
    assert search.methods == METHODS
    chosen = search.prepared.stage.read_choice("qformer", "best_run.json")
    assert search.best_trained == chosen["run"] in METHODS[4:]
    assert set(search.galleries) == {"dress", "shirt", "toptee"} and len(search.images) == 120


def test_where_nothing_was_trained_there_are_the_baselines_with_the_weights_that_were_chosen(prepared, tmp_path):
    stage = Stage("search", prepared.stage.study, prepared.stage.root, tmp_path, tmp_path, {})
    search = Search(open_prepared(stage))
    assert search.methods == METHODS[:4] and search.best_trained == "slerp"
    with pytest.raises(StageError, match=r"weights\.json, which is missing: run `dvc repro zero_shot` first"):
        search.warm("sum")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_search_ranks_as_the_study_scored(search, small_project, method):
    results = small_project / "results" / "garments"
    file = results / ("qformer" if "qformer" in method else "zero_shot") / "ranks.csv"
    parts, evaluation = search.prepared.splits.reported, search.study.evaluation
    scored = {(one.method, one.category): one for one in read_ranks(file, parts, evaluation)}
    for category, part in parts.items():
        one = scored[method, category]
        for row, triplet in enumerate(part.triplets[:5]):
            text = " and ".join(dict.fromkeys(triplet.captions))
            found = search.search(search.reference(triplet.reference), text, method, category=category, count=39)
            place = [hit.image for hit in found.hits].index(triplet.targets[0]) + 1
            assert place == pytest.approx(one.target_ranks[row], abs=1)  # bf16 texts in other company round otherwise
            assert found.hits[0].image in one.top[row][:2]
            assert triplet.reference not in [hit.image for hit in found.hits]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_ends_of_the_balance_are_the_picture_alone_and_the_words_alone(search, method):
    reference = search.reference(search.images[0])
    picture, half, own, words = (
        search.search(reference, "is red", method, balance=balance, count=39, category="dress")
        for balance in (-1, -0.5, 0, 1)
    )
    assert all(hit.score == pytest.approx(hit.picture_alone, abs=1e-5) for hit in picture.hits)
    assert all(hit.score == pytest.approx(hit.words_alone, abs=1e-5) for hit in words.hits)
    if method in ("sum", "slerp"):
        alone = [search.search(reference, "is red", m, count=39, category="dress") for m in METHODS[:2]]
        assert [[h.image for h in f.hits] for f in (picture, words)] == [[h.image for h in f.hits] for f in alone]
    scores = [hit.score for hit in own.hits]
    assert scores == sorted(scores, reverse=True)
    if method != "image_only" and "qformer" not in method:  # one vector an image: a mix scores evenly in between
        total = {hit.image: hit.score + hit.picture_alone for hit in own.hits}
        ratio = half.hits[0].score / total[half.hits[0].image]
        assert all(hit.score == pytest.approx(ratio * total[hit.image], abs=1e-4) for hit in half.hits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"text": "  "}, "Type what should be different"),
        ({"text": "red " * (MOST_WORDS + 1)}, f"{MOST_WORDS + 1} words, at most {MOST_WORDS}"),
        ({"text": "r" * 2_000_000}, "The edit has 2,000,000 characters, at most 2,000 are read"),
        ({"method": "magic"}, "no method 'magic', there are: image_only"),
        ({"category": "hats"}, "no category 'hats', there are: dress"),
        ({"balance": 2.0}, "balance is 2, it must be between -1"),
        ({"balance": float("nan")}, "balance is nan"),
    ],
)
def test_what_cannot_be_searched_is_said_in_a_sentence(search, change, told):
    values = {"text": "is red", "method": "sum"} | change
    with pytest.raises(SearchError, match=told):
        search.search(search.reference(search.images[0]), values.pop("text"), values.pop("method"), **values)


@pytest.mark.slow
def test_an_unknown_image_is_named(search):
    with pytest.raises(SearchError, match="no image 'nowhere'"):
        search.reference("nowhere")


# ------------------------------------------------------------------------------------------ uploads


def png(size: tuple[int, int] = (40, 60), form: str = "PNG", **options) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(
        content, form, **options
    )
    return content.getvalue()


@pytest.mark.slow
def test_a_gallery_picture_uploaded_is_encoded_as_it_was(search):
    image = search.images[3]
    upload, own = search.upload(search.files[image].read_bytes(), "mine.jpg"), search.reference(image)
    assert upload.image is None
    assert torch.nn.functional.cosine_similarity(upload.embedding, own.embedding, dim=0) > 0.999
    assert upload.tokens.shape == own.tokens.shape
    assert torch.nn.functional.cosine_similarity(upload.tokens.ravel(), own.tokens.ravel(), dim=0) > 0.999
    assert search.search(upload, "is red", "image_only", count=1).hits[0].image == image  # it is not left out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cat.jpg is not a picture"),
        (b"<html>not found</html>", "cat.jpg is not a picture"),
        (png()[:200], "cat.jpg is damaged"),
        (png(form="TIFF"), "cat.jpg is not a picture that can be read. Pictures of type JPEG, PNG"),
        (b"x" * (8 * 2**20 + 1), "cat.jpg has 8 MB. Pictures of type JPEG.* up to 8 MB"),
    ],
    ids=["empty", "text", "cut off", "other type", "too many bytes"],
)
def test_a_bad_upload_is_a_sentence(content, told):
    with pytest.raises(SearchError, match=told):
        open_upload(content, "cat.jpg")


@pytest.mark.parametrize("size", [(9_000, 9_000), (20_000, 20_000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(size):
    content = io.BytesIO()
    Image.new("1", size).save(content, "PNG")
    with pytest.raises(SearchError, match=r"pixels?. Pictures of type .* and 50 megapixels"):
        open_upload(content.getvalue())


def test_an_upload_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert open_upload(png((40, 60), "JPEG", exif=exif)).size == (60, 40)


# ------------------------------------------------------------------------------------------ the page


@pytest.fixture
def page(search) -> SearchPage:
    return SearchPage(search, "sum", "qformer", hits=4)


def tiles_of(page: SearchPage, side: int) -> tuple:
    return page.columns[side].tiles.row.children


def drop(page: SearchPage, content: bytes, name: str) -> None:
    """What the browser does with a file that is uploaded."""
    file = {"name": name, "type": "image/png", "size": len(content), "last_modified": datetime.now()}
    page.file.value = (file | {"content": memoryview(content)},)


@pytest.mark.slow
def test_the_page_opens_with_an_answer_of_both_methods(page):
    assert [len(tiles_of(page, side)) for side in (0, 1)] == [4, 4]
    assert page.edit.value and page.status.value == ""
    assert page.columns[0].time.value.endswith("&nbsp;ms")
    assert len(page.columns[0].tiles.style.value) < 200_000
    assert "background-image: url(data:image/jpeg" in page.columns[0].tiles.style.value


@pytest.mark.slow
def test_several_turns_and_back(page):
    first = page.turn
    hit = page.columns[1].found.hits[2]
    tiles_of(page, 1)[2].click()
    assert page.turn.reference.image == hit.image and page.edit.value == ""
    assert tiles_of(page, 0) == () and "Type what should be different" in page.status.value
    page.edit.value = "is red"
    assert page.turn.text == "is red" and len(tiles_of(page, 1)) == 4 and page.status.value == ""
    tiles_of(page, 0)[0].click()
    assert len(page.turns) == 3 and len(page.history.row.children) == 2
    page.back.click()
    assert page.turn.text == "is red" and len(tiles_of(page, 1)) == 4
    page.history.row.children[0].click()
    assert page.turn == first and page.back.disabled


@pytest.mark.slow
def test_another_method_category_or_balance_answers_anew(page):
    before = [hit.image for hit in page.columns[0].found.hits]
    page.columns[0].method.value = "text_only"
    assert page.columns[0].found.method == "text_only"
    page.category.value = "shirt"
    shirts = set(page.search.galleries["shirt"])
    assert {hit.image for hit in page.columns[0].found.hits} <= shirts and set(page.offered) <= shirts
    page.category.value = "all categories"
    page.columns[0].method.value, page.balance.value = "sum", -1
    assert [hit.image for hit in page.columns[0].found.hits] != before


@pytest.mark.slow
def test_a_reference_is_picked_from_those_offered_and_offered_anew(page):
    text, offered = page.turn.text, list(page.offered)
    page.picks.row.children[1].click()
    assert page.turn.reference.image == offered[1] and page.turn.text == text
    page.other.click()
    assert page.offered != offered


@pytest.mark.slow
def test_an_upload_becomes_the_reference_and_a_bad_one_leaves_the_page_as_it_was(page):
    drop(page, png((90, 90)), "mine.png")
    assert page.turn.reference.image is None and "your picture" in page.reference.value
    answer = page.columns[0].found
    drop(page, b"<b>no</b>", "<b>.jpg")
    assert 'role="alert"' in page.status.value and "&lt;b&gt;.jpg is not a picture" in page.status.value
    assert page.columns[0].found is answer and page.turn.reference.image is None


@pytest.mark.slow
def test_why_shows_the_parts_of_each_score_and_where_the_qformer_looks(page):
    for column in page.columns:
        column.reasons.selected_index = 0
    assert "picture alone" in page.columns[0].why.value and "<img" not in page.columns[0].why.value
    assert page.columns[1].why.value.count("<img") == 2
    assert f"{page.columns[1].found.hits[0].score:.3f}" in page.columns[1].why.value


@pytest.mark.slow
def test_an_unknown_method_of_a_column_is_refused(search):
    with pytest.raises(SearchError, match="no method 'magic'"):
        SearchPage(search, "magic", "sum")
