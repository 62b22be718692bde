"""Missing images: counted, refused, or dropped with what they cost."""

import pytest

from cirlib.benchmarks import BenchmarkError, load_benchmark


@pytest.fixture
def one_missing(small_fashioniq, write_image):
    """dress/val with every image but dress-val-2, the target of the first of two queries."""
    for i in (0, 1, 3, 4):
        write_image(small_fashioniq / "images" / f"dress-val-{i}.png", i)
    return load_benchmark("fashioniq", small_fashioniq, category="dress")


def test_missing_images_stop_a_study_with_counts_and_the_parameter_that_allows_them(one_missing):
    with pytest.raises(BenchmarkError) as error:
        one_missing.drop_missing()
    for part in ("1 of 5 gallery images", "1 of 2 queries", "'dress-val-2'", "data.allow_missing"):
        assert part in str(error.value)


def test_dropping_missing_images_drops_what_they_cost_and_marks_the_result(one_missing):
    rest = one_missing.drop_missing(allow=True)
    assert [t.id for t in rest.triplets] == ["dress-val-1"]
    assert rest.gallery == ["dress-val-0", "dress-val-1", "dress-val-3", "dress-val-4"]
    assert (rest.complete, rest.missing) == (False, {})
    with pytest.raises(BenchmarkError, match="known to be partial"):
        rest.drop_missing()


def test_dropping_nothing_leaves_a_benchmark_complete(small_fashioniq, write_image):
    for i in range(5):
        write_image(small_fashioniq / "images" / f"dress-val-{i}.png")
    val = load_benchmark("fashioniq", small_fashioniq, category="dress")
    assert val.drop_missing() is val


def test_images_marked_unusable_count_as_missing(one_missing):
    marked = one_missing.mark_unusable({"dress-val-4": "is of no query", "elsewhere": "x"})
    assert "elsewhere" not in marked.images
    rest = marked.drop_missing(allow=True)
    assert (len(rest.triplets), len(rest.gallery)) == (1, 3)
    marked = one_missing.mark_unusable({"dress-val-1": "cannot be decoded"})
    assert marked.missing["dress-val-1"] == "cannot be decoded"
    assert marked.lost_queries == {"dress-val-0", "dress-val-1"}
    with pytest.raises(BenchmarkError, match="Nothing is left to score"):
        marked.drop_missing(allow=True)
