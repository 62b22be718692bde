"""The drawn catalogue: FashionIQ's layout, same arguments same files, true captions, one answer."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cirlib.benchmarks import BenchmarkError
from cirlib.benchmarks.garments import Catalogue, Garment, draw_garments, plan_catalogue, render_garment
from cirlib.benchmarks.garments.attributes import (
    ATTRIBUTES,
    CATEGORIES,
    PALETTE,
    VALUES,
    contrasting,
    difference,
    random_garment,
    visible,
)
from cirlib.benchmarks.garments.captions import DARKER, LIGHTER, PHRASES, RELATIVE, Caption, edit_captions
from cirlib.study.parameters import Drawing

SIZES = Drawing(train_images=24, train_triplets=10, val_queries=6, gallery_size=25, pairs=12, family_size=12)
SIDE = 48
IMAGES = 3 * (24 + 25) + 12


def contents(root: Path) -> dict[str, str]:
    """Every file below root with a hash of its bytes."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read(path: Path) -> list | dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("garments")
    draw_garments(root, SIZES, image_size=SIDE, workers=1)
    return root


@pytest.fixture(scope="module")
def plan() -> Catalogue:
    counts = {"train_images": 250, "train_triplets": 250, "val_queries": 100, "gallery_size": 250}
    return plan_catalogue(Drawing(**counts, pairs=600))


def edits(plan: Catalogue) -> list[tuple[Garment, Garment, tuple[Caption, Caption]]]:
    queries = [query for collection in plan.collections for query in collection.queries]
    return [(query.reference.garment, query.target.garment, query.captions) for query in queries]


# ---- files ----


def test_layout_and_counts_are_exact(drawn: Path) -> None:
    names = {f"captions/cap.{c}.{s}.json" for c in CATEGORIES for s in ("train", "val")}
    names |= {f"image_splits/split.{c}.{s}.json" for c in CATEGORIES for s in ("train", "val")}
    names |= {"pairs.json", "attributes.json", "drawn.json"}
    found = set(contents(drawn))
    assert {name for name in found if not name.startswith("images/")} == names
    assert len(found) - len(names) == IMAGES == len(read(drawn / "attributes.json"))
    for category in CATEGORIES:
        assert len(read(drawn / f"captions/cap.{category}.train.json")) == 10
        assert len(read(drawn / f"captions/cap.{category}.val.json")) == 6
        assert len(set(read(drawn / f"image_splits/split.{category}.val.json"))) == 25
    assert len(read(drawn / "pairs.json")) == 12


def test_triplets_have_fashioniqs_fields_and_images_of_their_split(drawn: Path) -> None:
    for file in (drawn / "captions").iterdir():
        ids = set(read(drawn / "image_splits" / file.name.replace("cap.", "split.")))
        triplets = read(file)
        for triplet in triplets:
            assert set(triplet) == {"target", "candidate", "captions"}
            assert {triplet["target"], triplet["candidate"]} <= ids and triplet["target"] != triplet["candidate"]
            assert len(triplet["captions"]) == 2 and all(triplet["captions"])
        assert len({(triplet["candidate"], triplet["target"]) for triplet in triplets}) == len(triplets)


def test_train_val_and_pairs_share_no_image(drawn: Path) -> None:
    groups = [read(path) for path in (drawn / "image_splits").iterdir()]
    groups.append([pair["image"] for pair in read(drawn / "pairs.json")])
    listed = [name for group in groups for name in group]
    assert len(listed) == len(set(listed)) == IMAGES
    pixels = {Image.open(drawn / "images" / f"{name}.jpg").tobytes() for name in listed}
    assert len(pixels) == IMAGES


def test_files_do_not_depend_on_the_number_of_workers(drawn: Path, tmp_path: Path) -> None:
    draw_garments(tmp_path, SIZES, image_size=SIDE, workers=2)
    assert contents(tmp_path) == contents(drawn)


def test_a_killed_run_is_completed(drawn: Path, tmp_path: Path) -> None:
    draw_garments(tmp_path, SIZES, image_size=SIDE, workers=1)
    images = sorted((tmp_path / "images").iterdir())
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:300])
    images[2].write_bytes(images[2].read_bytes()[:-2])
    images[3].with_name(f"{images[3].name}.tmp").write_bytes(b"half")
    (tmp_path / "captions" / "cap.dress.val.json").write_text("[")
    (tmp_path / "drawn.json").unlink()
    whole = images[4].stat().st_mtime_ns
    draw_garments(tmp_path, SIZES, image_size=SIDE, workers=1)
    assert contents(tmp_path) == contents(drawn)
    assert images[4].stat().st_mtime_ns == whole  # what is finished is left as it is


def test_other_arguments_replace_the_catalogue(drawn: Path, tmp_path: Path) -> None:
    draw_garments(tmp_path, SIZES.model_copy(update={"gallery_size": 26}), image_size=32, workers=1)
    draw_garments(tmp_path, SIZES, image_size=SIDE, workers=1)
    assert contents(tmp_path) == contents(drawn)


def test_counts_that_cannot_be_met_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="500 val queries do not fit: 25 dress images"):
        draw_garments(tmp_path, SIZES.model_copy(update={"val_queries": 500}))
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "B008BHCT58.jpg").write_bytes(b"a photo")
    with pytest.raises(ValueError, match="holds other images"):
        draw_garments(tmp_path, SIZES, image_size=SIDE)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["B008BHCT58.jpg"]


# ---- queries ----


def test_no_two_images_of_a_gallery_have_the_same_attributes(plan: Catalogue) -> None:
    for collection in plan.collections:
        garments = [image.garment for image in collection.images]
        assert len(set(garments)) == len(garments)
        assert {garment.category for garment in garments} == {collection.category}


def test_references_and_targets_are_three_or_four_attributes_apart(plan: Catalogue) -> None:
    steps = Counter(len(difference(reference, target)) for reference, target, _ in edits(plan))
    assert set(steps) == {3, 4}
    assert min(steps.values()) > 0.3 * sum(steps.values())


def test_the_reference_has_near_twins_in_the_gallery_that_are_nearer_than_the_target(plan: Catalogue) -> None:
    twins = []
    for collection in (c for c in plan.collections if c.split == "val"):
        garments = [image.garment for image in collection.images]
        for query in collection.queries:
            away = len(difference(query.reference.garment, query.target.garment))
            twins.append(sum(0 < len(difference(query.reference.garment, other)) < away for other in garments))
    assert np.median(twins) >= 5


def test_every_kind_of_edit_occurs_often(plan: Catalogue) -> None:
    kinds = Counter(name for reference, target, _ in edits(plan) for name in difference(reference, target))
    assert set(kinds) == set(ATTRIBUTES)
    assert min(kinds.values()) > 0.08 * len(edits(plan))


def test_queries_use_many_images_on_both_sides(plan: Catalogue) -> None:
    for collection in plan.collections:
        for side in ("reference", "target"):
            uses = Counter(getattr(query, side).id for query in collection.queries)
            assert max(uses.values()) <= 5 and len(uses) > 0.5 * len(collection.queries)


@pytest.mark.parametrize("size", [8, 9, 12])
def test_small_families_still_give_queries(size: int) -> None:
    counts = {"family_size": size, "train_images": 48, "train_triplets": 12, "gallery_size": 48, "val_queries": 8}
    assert len(edits(plan_catalogue(SIZES.model_copy(update=counts)))) == 3 * (12 + 8)


def test_the_second_colour_counts_only_where_it_shows(plan: Catalogue) -> None:
    for image in plan.images:
        garment = image.garment
        assert (garment.second_colour is None) == (garment.pattern == "plain" and garment.graphic == "none")
        assert garment.second_colour is None or contrasting(garment.colour, garment.second_colour)


# ---- captions ----


def test_captions_tell_most_changes_once_and_no_other(plan: Catalogue) -> None:
    named = every = 0
    for reference, target, captions in edits(plan):
        changed = difference(reference, target)
        assert captions[0].mentions and captions[1].mentions
        assert not captions[0].mentions & captions[1].mentions
        assert captions[0].mentions | captions[1].mentions <= changed
        named, every = named + sum(len(caption.mentions) for caption in captions), every + len(changed)
    assert 0.85 < named / every < 0.98


def said(text: str, name: str) -> set[str]:
    """The values of an attribute whose phrases stand in the text, longest phrases first."""
    phrases = [(words.replace("{c}", ""), value) for value, ways in PHRASES[name].items() for _, words in ways]
    found = set()
    for words, value in sorted(phrases, key=lambda phrase: -len(phrase[0])):
        bare = re.sub(r"^an? ", "", words)
        if re.search(rf"\b{re.escape(bare)}\b", text):
            found.add(value)
            text = re.sub(rf"\b{re.escape(bare)}\b", "", text)
    return found


def without_colours(text: str) -> str:
    """The text without second colours, so that "white polka dots" reads "polka dots"."""
    return re.sub(rf"\b({'|'.join(PALETTE)}) (?!in color)", "", text)


@pytest.mark.parametrize("name", ["sleeves", "neckline", "length", "extra", "graphic", "pattern"])
def test_captions_name_only_values_of_the_two_garments(plan: Catalogue, name: str) -> None:
    for reference, target, captions in edits(plan):
        allowed = {getattr(reference, name), getattr(target, name)}
        for caption in captions:
            text = without_colours(caption.text)
            if name == "graphic":  # "flower pattern" is the floral one
                text = text.replace("flower pattern", "")
            assert said(text, name) <= allowed, caption.text


def test_captions_name_only_colours_of_the_two_garments(plan: Catalogue) -> None:
    for reference, target, captions in edits(plan):
        text = f"{captions[0].text} {captions[1].text}".replace("light blue", "light_blue")
        words = {word for word in PALETTE if re.search(rf"\b{word.replace(' ', '_')}\b", text)}
        assert words <= {reference.colour, target.colour, reference.second_colour, target.second_colour}


@pytest.mark.parametrize("name", ["colour", "sleeves", "neckline", "length", "fit"])
def test_a_named_change_is_told_by_its_new_value_or_a_comparison(plan: Catalogue, name: str) -> None:
    compared = [words for way in RELATIVE.get(name, ((), ())) for _, words in way] + (
        ["sleeves"] if name == "sleeves" else []
    )
    compared += [words for _, words in (*DARKER, *LIGHTER)] if name == "colour" else []
    exact = told = 0
    for _, target, captions in edits(plan):
        for caption in (caption for caption in captions if name in caption.mentions):
            value = getattr(target, name) in said(caption.text, name)
            assert value or any(words in caption.text for words in compared), caption.text
            exact, told = exact + value, told + 1
    assert exact > 0.6 * told


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("colour", "navy", "yellow"),
        ("sleeves", "short", "long"),
        ("neckline", "crew", "v-neck"),
        ("length", "cropped", "tunic"),
        ("fit", "fitted", "flared"),
        ("extra", "pocket", "zipper"),
    ],
)
def test_what_is_replaced_is_the_old_value(name: str, old: str, new: str) -> None:
    seen = 0
    for text in sentences("shirt", name, old, new):
        told, contrast, replaced = re.split("( instead of | rather than |, not |$)", text, maxsplit=1)[:3]
        if contrast:
            seen += 1
            assert said(told, name) == {new}, text
            assert said(replaced, name) == {old}, text
    assert seen


def sentences(category: str, name: str, old: str, new: str) -> list[str]:
    """Many sentences for one change."""
    base = Garment(category, "navy", "plain", None, "short", "crew", "regular", "straight", "none", "none")
    old_garment = Garment(**{**vars(base), name: old})
    new_garment = Garment(**{**vars(base), name: new})
    rng = np.random.default_rng(0)
    return [caption.text for _ in range(60) for caption in edit_captions(rng, old_garment, new_garment)]


@pytest.mark.parametrize(
    ("name", "old", "new", "expected", "excluded"),
    [
        ("sleeves", "short", "long", "longer sleeves", "shorter"),
        ("sleeves", "long", "short", "shorter sleeves", "longer"),
        ("length", "cropped", "tunic", "is longer", "shorter"),
        ("length", "tunic", "cropped", "is shorter", "longer"),
        ("fit", "fitted", "flared", "looser", "tighter"),
        ("fit", "flared", "fitted", "tighter", "looser"),
        ("colour", "navy", "yellow", "is lighter", "darker"),
        ("colour", "white", "navy", "is darker", "lighter"),
        ("extra", "pocket", "none", "no pocket", "zipper"),
    ],
)
def test_comparisons_go_the_right_way(name: str, old: str, new: str, expected: str, excluded: str) -> None:
    texts = sentences("shirt", name, old, new)
    assert any(expected in text for text in texts)
    assert not any(excluded in text for text in texts)


def test_nothing_is_swallowed_by_what_is_gone_or_replaced(plan: Catalogue) -> None:
    """Behind "no", "instead of" or "rather than" comes no further change without a verb or a comma before it."""
    texts = [caption.text for _, _, captions in edits(plan) for caption in captions]
    behind = [part for text in texts for part in re.split(r"\bno | instead of | rather than ", text)[1:]]
    assert len(behind) > 100
    assert not [part for part in behind if re.search(r" with | and (?!is |has |no |$)", part.split(",")[0])]


def test_equal_garments_have_no_edit() -> None:
    garment = visible(random_garment(np.random.default_rng(0), "dress"))
    with pytest.raises(ValueError, match="no edit to describe"):
        edit_captions(np.random.default_rng(0), garment, garment)


def test_captions_are_lower_case_and_clean(plan: Catalogue) -> None:
    texts = [caption.text for _, _, captions in edits(plan) for caption in captions]
    texts += [pair.caption.text for pair in plan.pairs]
    for text in texts:
        assert text == text.lower().strip() and not re.search(r"[{}]|  |,,|,$|\ba [aeiou]", text), text
    assert len(set(texts)) > 0.7 * len(texts)


def test_full_captions_describe_their_garment(plan: Catalogue) -> None:
    for pair in plan.pairs:
        garment, caption = pair.image.garment, pair.caption
        for name in ("sleeves", "neckline", "length", "extra", "fit"):
            expected = {getattr(garment, name)} if name in caption.mentions else set()
            assert said(without_colours(caption.text), name) == expected, caption.text
        assert ("colour" in caption.mentions) <= (garment.colour in caption.text)


# ---- pictures ----


@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.parametrize("category", CATEGORIES)
def test_every_value_of_every_attribute_looks_different(category: str, name: str) -> None:
    base = Garment(category, "green", "polka dots", "white", "long", "crew", "midi", "straight", "star", "none")
    if category != "dress":
        base = Garment(**{**vars(base), "length": "regular"})
    values = sorted(set(VALUES[category][name]) - ({"green"} if name == "second_colour" else set()))
    garments = [Garment(**{**vars(base), name: value}) for value in values]
    pictures = {render_garment(garment, np.random.default_rng(5), 64).tobytes() for garment in garments}
    assert len(pictures) == len(values)


def test_two_pictures_of_one_garment_differ_a_lot() -> None:
    garment = random_garment(np.random.default_rng(0), "toptee")
    first, second = (np.asarray(render_garment(garment, np.random.default_rng(i), 64), int) for i in (1, 2))
    assert np.abs(first - second).mean() > 10
