"""Missing images: counted, refused, or dropped with what they cost."""

from __future__ import annotations

import pytest

from cirlib.benchmarks import (
    BenchmarkError,
    drop_missing,
    load_benchmark,
    lost_queries,
    mark_unusable,
    require_complete,
)


@pytest.fixture
def one_missing(small_fashioniq, write_image):
    """dress/val with every image but dress-val-2, the target of the first of two queries."""
    for i in (0, 1, 3, 4):
        write_image(small_fashioniq / "images" / f"dress-val-{i}.png", i)
    return load_benchmark("fashioniq", small_fashioniq, category="dress")


def test_missing_images_stop_a_study_with_counts_and_the_parameter_that_allows_them(one_missing):
    with pytest.raises(BenchmarkError) as error:
        require_complete(one_missing)
    for part in ("1 of 5 gallery images", "1 of 2 queries", "'dress-val-2'", "data.allow_missing"):
        assert part in str(error.value)
    require_complete(one_missing, allow_missing=True)


def test_dropping_missing_images_counts_what_it_drops_and_marks_the_result(one_missing):
    rest = drop_missing(one_missing)
    assert [t.id for t in rest.triplets] == ["dress-val-1"]
    assert rest.gallery == ["dress-val-0", "dress-val-1", "dress-val-3", "dress-val-4"]
    assert not rest.complete
    assert rest.missing == {}
    with pytest.raises(BenchmarkError, match="known to be partial"):
        require_complete(rest)


def test_dropping_nothing_leaves_a_benchmark_complete(small_fashioniq, write_image):
    for i in range(5):
        write_image(small_fashioniq / "images" / f"dress-val-{i}.png")
    val = load_benchmark("fashioniq", small_fashioniq, category="dress")
    require_complete(val)
    assert drop_missing(val) is val


def test_a_missing_image_of_no_query_costs_a_gallery_entry_only(small_fashioniq, write_image):
    for i in range(4):
        write_image(small_fashioniq / "images" / f"dress-val-{i}.png")
    rest = drop_missing(load_benchmark("fashioniq", small_fashioniq, category="dress"))
    assert (rest.complete, len(rest.triplets), len(rest.gallery)) == (False, 2, 4)


def test_images_marked_unusable_count_as_missing(one_missing):
    marked = mark_unusable(one_missing, {"dress-val-1": "cannot be decoded", "elsewhere": "x"})
    assert marked.missing["dress-val-1"] == "cannot be decoded"
    assert "elsewhere" not in marked.images
    assert [t.id for t in lost_queries(marked)] == ["dress-val-0", "dress-val-1"]
    with pytest.raises(BenchmarkError, match="Nothing is left"):
        drop_missing(marked)
