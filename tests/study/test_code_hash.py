"""Which edits of the library's code count."""

import pytest

from cirlib.study import code_hash as module

CODE = '"""Words."""\n\ndef f(x: int) -> int:\n    """More words."""\n    return x + 1\n'


@pytest.mark.parametrize(
    ("edited", "counts"),
    [
        (CODE.replace("x + 1", "x - 1"), True),
        (CODE.replace("x + 1", "x  +  1  # as the paper has it"), False),
        (CODE.replace("Words", "Other words").replace("More", "Fewer"), False),
        (CODE.replace('    """More words."""\n', ""), False),
    ],
)
def test_statements_count_and_words_do_not(tmp_path, monkeypatch, edited, counts):
    monkeypatch.setattr(module, "LIBRARY", tmp_path)
    (tmp_path / "losses").mkdir()
    hashes = []
    for text in (CODE, edited):
        (tmp_path / "losses" / "a.py").write_text(text)
        (tmp_path / "b.py").write_text(text)  # in no folder that was asked for
        hashes.append(module.code_hash.__wrapped__("losses"))
    assert (hashes[0] != hashes[1]) == counts
