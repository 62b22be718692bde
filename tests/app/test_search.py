"""Search with a study's models: the same ranking as the study's own, leanings, refusals, uploads; and the page."""

import io
import re
from datetime import datetime
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from browser import served
from PIL import Image
from small_studies import ROOT, compose

from cirlib.app.search import Hit, Search, SearchError, open_upload
from cirlib.app.search_page import SearchPage
from cirlib.models.fitted_methods import fit_methods
from cirlib.models.prepared import open_prepared
from cirlib.retrieval.method_scoring import score_methods
from cirlib.retrieval.result_files import read_ranks
from cirlib.study import method_registry
from cirlib.study.errors import StageError
from cirlib.study.parameters import load_study
from cirlib.study.stage import Stage

METHODS = ["image_only", "text_only", "sum", "slerp", "prompt_tuned"]
METHODS += ["qformer_pretrained", "qformer", "qformer_hard_negatives"]


@pytest.fixture(scope="module")
def search(small_project) -> Search:
    out = small_project / "none"
    return Search(
        open_prepared(Stage("search", load_study(small_project / "params.yaml"), small_project, out, out, {}))
    )


def test_it_searches_with_every_baseline_and_every_trained_qformer(search):
    assert search.methods == METHODS
    chosen = search.prepared.stage.read_choice("qformer", "best_run.json")
    assert search.best_trained == chosen["run"] in METHODS[6:]
    assert set(search.galleries) == {"dress", "shirt", "toptee"} and len(search.images) == 150


def test_where_nothing_was_trained_there_are_the_baselines_with_the_weights_that_were_chosen(prepared, tmp_path):
    stage = Stage("search", prepared.stage.study, prepared.stage.root, tmp_path, tmp_path, {})
    search = Search(open_prepared(stage))
    assert search.methods == METHODS[:4] and search.best_trained == "slerp"
    with pytest.raises(StageError, match=r"weights\.json, which is missing: run `dvc repro zero_shot` first"):
        search.search(search.reference(search.images[0]), "is red", "sum")


OWN = """
from torch.nn.functional import normalize
from cirlib.study.method_registry import register

@register("own", "my own")
class Own:
    def fit(self, prepared):
        self.towers = prepared.towers()

    def embed_queries(self, images, texts):
        return normalize(images.embeddings + self.towers.encode_texts(texts), dim=-1)

    def embed_targets(self, images):
        return images.embeddings

    def rerank(self, images, texts, candidates):
        return [[float(image.endswith("5")) for image in row] for row in candidates]
"""


@pytest.fixture
def own_study(prepared):
    """The small study, asked for a method of one's own with a second stage that lifts every image 5."""
    stage = prepared.stage
    (stage.root / "own.py").write_text(OWN)
    study = stage.study.model_copy(
        update={"zero_shot": stage.study.zero_shot.model_copy(update={"methods": ["own.py"]})}
    )
    yield open_prepared(Stage("search", study, stage.root, stage.out, stage.figures, {}))
    (stage.root / "own.py").unlink()
    method_registry.METHODS.pop("own")


def test_a_method_of_one_s_own_searches_as_it_is_scored(own_study):
    search, parts, rules = Search(own_study), own_study.splits.reported, own_study.stage.study.evaluation
    assert search.methods == [*METHODS[:4], "own"]
    for one in score_methods(fit_methods(own_study, ["own.py"]), own_study.read, parts, rules):
        for triplet, top in zip(one.benchmark.triplets, one.top, strict=True):
            text = " and ".join(dict.fromkeys(caption.strip(".") for caption in triplet.captions)).capitalize()
            hits = search.search(search.reference(triplet.reference), text, "own", category=one.category, count=5)
            assert [hit.image for hit in hits] == top and top[0].endswith("5")
    upload = search.upload(png())
    ends = [search.search(upload, "is red", "own", balance=balance, count=4) for balance in (-1, 1)]
    assert ends[0][0].score != ends[1][0].score
    assert search.attention(upload, "is red", "own", search.images[0]) is None


@pytest.mark.parametrize("method", METHODS)
def test_a_search_ranks_as_the_study_scored(search, small_project, method):
    stage = "zero_shot" if method in METHODS[:4] else "qformer"
    parts = search.prepared.splits.reported
    scored = read_ranks(small_project / "results/garments" / stage / "ranks.csv", parts, search.study.evaluation)
    for one in scored:
        for row, triplet in enumerate(one.benchmark.triplets[:5] if one.method == method else ()):
            text = " and ".join(dict.fromkeys(triplet.captions))
            hits = search.search(search.reference(triplet.reference), text, method, category=one.category, count=49)
            found = [hit.image for hit in hits]
            rank = found.index(triplet.targets[0]) + 1
            assert rank == pytest.approx(one.target_ranks[row], abs=1)  # bf16 texts in other company round otherwise
            assert found[0] in one.top[row][:2] and triplet.reference not in found


@pytest.mark.parametrize("method", METHODS)
def test_the_ends_of_the_balance_are_the_picture_alone_and_the_words_alone(search, method):
    def ask(method: str, balance: float) -> list[Hit]:
        reference = search.reference(search.images[0])
        return search.search(reference, "is red", method, balance=balance, count=49, category="dress")

    picture, half, own, words = (ask(method, balance) for balance in (-1, -0.5, 0, 1))
    assert all(hit.score == pytest.approx(hit.picture_alone, abs=1e-5) for hit in picture)
    assert all(hit.score == pytest.approx(hit.words_alone, abs=1e-5) for hit in words)
    assert [hit.score for hit in own] == sorted((hit.score for hit in own), reverse=True)
    if method in ("sum", "slerp"):
        assert [[h.image for h in f] for f in (picture, words)] == [[h.image for h in ask(m, 0)] for m in METHODS[:2]]
    if method != "image_only" and "qformer" not in method:  # one vector an image: a mix scores evenly in between
        total = {hit.image: hit.score + hit.picture_alone for hit in own}
        ratio = half[0].score / total[half[0].image]
        assert all(hit.score == pytest.approx(ratio * total[hit.image], abs=1e-4) for hit in half)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"image": "nowhere"}, "no image 'nowhere'"),
        ({"text": "  "}, "Type what should be different"),
        ({"text": "r" * 2_000_000}, "The edit has 2,000,000 characters, at most 2,000 are read"),
        ({"method": "magic"}, "no method 'magic', there are: image_only"),
        ({"category": "hats"}, "no category 'hats', there are: dress"),
        ({"balance": float("nan")}, "balance is nan, it must be between -1"),
    ],
)
def test_what_cannot_be_searched_is_said_in_a_sentence(search, change, told):
    values = {"image": search.images[0], "text": "is red", "method": "sum"} | change
    with pytest.raises(SearchError, match=told):
        search.search(search.reference(values.pop("image")), **values)


# ------------------------------------------------------------------------------------------ uploads


def png(size: tuple[int, int] = (40, 60), form: str = "PNG", **options) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, form, **options)
    return content.getvalue()


def test_a_gallery_picture_uploaded_is_encoded_as_it_was(search):
    image = search.images[3]
    upload, own = search.upload(search.files[image].read_bytes(), "mine.jpg"), search.reference(image)
    assert upload.image is None and upload.tokens.shape == own.tokens.shape
    assert torch.nn.functional.cosine_similarity(upload.embedding, own.embedding, dim=0) > 0.999
    assert torch.nn.functional.cosine_similarity(upload.tokens.ravel(), own.tokens.ravel(), dim=0) > 0.999
    assert search.search(upload, "is red", "image_only", count=1)[0].image == image  # it is not left out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cat.jpg is not a picture"),
        (png()[:200], "cat.jpg is not a picture that can be read, or a damaged one"),
        (png(form="PPM"), "cat.jpg is not a picture .* Pictures of type JPEG, PNG"),
        (b"x" * (8 * 2**20 + 1), "cat.jpg has 8 MB. Pictures of type JPEG.* up to 8 MB"),
    ],
    ids=["empty", "cut off", "other type", "too many bytes"],
)
def test_a_bad_upload_is_a_sentence(content, told):
    with pytest.raises(SearchError, match=told):
        open_upload(content, "cat.jpg")


@pytest.mark.parametrize("side", [9_000, 20_000])  # below and above what pillow itself refuses
def test_too_many_pixels_are_refused_before_they_are_decoded(side):
    content = io.BytesIO()
    Image.new("1", (side, side)).save(content, "PNG")
    with pytest.raises(SearchError, match=r"too many pixels. Pictures of type .* and 50 megapixels"):
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


def test_the_page_opens_with_an_answer_of_both_methods_and_says_why(page):
    assert [len(tiles_of(page, side)) for side in (0, 1)] == [4, 4]
    assert page.edit.value and page.status.value == ""
    left, right = page.columns
    assert left.time.value.endswith("&nbsp;ms")
    assert "background-image: url(data:image/jpeg" in left.tiles.style.value and len(left.tiles.style.value) < 200_000
    left.reasons.selected_index = right.reasons.selected_index = 0
    assert "picture alone" in left.why.value and f"{right.hits[0].score:.3f}" in right.why.value
    assert (left.why.value.count("<img"), right.why.value.count("<img")) == (0, 2)  # where the Q-Former looks


def test_several_turns_and_back(page):
    first, hit = page.turn, page.columns[1].hits[2]
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


def test_another_method_category_balance_or_reference_answers_anew(page):
    left, text = page.columns[0], page.turn.text
    before = left.hits
    left.method.value = "text_only"
    assert all(hit.score == pytest.approx(hit.words_alone, abs=1e-5) for hit in left.hits)
    page.category.value = "shirt"
    shirts = set(page.search.galleries["shirt"])
    assert {hit.image for hit in left.hits} <= shirts and set(page.offered) <= shirts
    page.category.value = "all categories"
    left.method.value, page.balance.value = "sum", -1
    assert [hit.image for hit in left.hits] != [hit.image for hit in before]
    offered = list(page.offered)
    page.picks.row.children[1].click()
    assert page.turn.reference.image == offered[1] and page.turn.text == text
    page.other.click()
    assert page.offered != offered


def test_an_upload_becomes_the_reference_and_a_bad_one_leaves_the_page_as_it_was(page):
    drop(page, png((90, 90)), "mine.png")
    assert page.turn.reference.image is None and "your picture" in page.reference.value
    answer = page.columns[0].hits
    drop(page, b"<b>no</b>", "<b>.jpg")
    assert 'role="alert"' in page.status.value and "&lt;b&gt;.jpg is not a picture" in page.status.value
    assert page.columns[0].hits is answer and page.turn.reference.image is None


@pytest.mark.parametrize("act", ["type", "method", "click", "back", "slide"])
def test_what_a_stage_has_to_make_first_is_a_sentence_on_the_page(page, monkeypatch, act):
    """A server of pages swallows what a button's function raises."""

    def missing(*_, **__):
        raise StageError("search needs a file, which is missing: run `dvc repro qformer` first")

    tiles_of(page, 1)[2].click()
    page.edit.value = "is red"
    monkeypatch.setattr(page.search, "search", missing)
    monkeypatch.setattr(page.search, "reference", missing)
    does = {
        "type": lambda: setattr(page.edit, "value", "is blue"),
        "method": lambda: setattr(page.columns[0].method, "value", "slerp"),
        "click": lambda: tiles_of(page, 0)[0].click(),
        "back": page.back.click,
        "slide": lambda: setattr(page.balance, "value", 0.5),
    }
    does[act]()
    assert "run `dvc repro qformer` first" in page.status.value


@pytest.mark.slow
def test_a_plain_page_that_cannot_open_shows_the_studys_own_sentence(tmp_path):
    """Voilà shows one of its own unless told otherwise."""
    for name in ("dvc.yaml", "voila.json", "notebooks/06_search.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    compose(tmp_path / "params.yaml")
    options = ("--no-browser", "--port={port}", "--Voila.ip=127.0.0.1")
    with served(tmp_path, "voila", "notebooks/06_search.ipynb", *options) as port:
        shown = re.sub("<.*?>", " ", urlopen(f"http://127.0.0.1:{port}/", timeout=240).read().decode())
    assert re.search(
        "StageError: search needs data/garments/.*, which is missing: run `dvc repro data_prep` first", shown
    )
    assert "show_tracebacks" not in shown
