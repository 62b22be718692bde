"""The page on Retrieval-DPO holds no result, so that none of it can contradict the tables."""

import re
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "retrieval_dpo.md").read_text()


def test_the_page_has_no_number_that_a_run_would_make():
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)|@\d+|\b(19|20)\d\d\b|04_dpo", "", PAGE)
    assert re.findall(r"[+−-]?\d[\d.,]*\s*%?", prose) == []
