"""The Makefile on machines as people have them: what it refuses before it installs anything, whose kernel it takes."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHOW = 'show: ; @echo "$$LOGNAME|$$HOME|$$JUPYTER_PATH"'


@pytest.fixture
def make(tmp_path: Path):
    """Runs `make` in a folder with little but the Makefile; `programs` of these names come first on the path."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "programs").mkdir()

    def run(*arguments: str, programs: dict[str, str] | None = None, **environment: str):
        for name, line in (programs or {}).items():
            (tmp_path / "programs" / name).write_text(f"#!/bin/sh\n{line}\n")
            (tmp_path / "programs" / name).chmod(0o755)
        path = f"{tmp_path / 'programs'}:{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", **environment}
        return subprocess.run(["make", *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment)

    return run


def refusal(done) -> str:
    assert done.returncode != 0 and done.stdout == ""
    sentence, _ = done.stderr.splitlines()  # and make's own line
    return sentence


@pytest.mark.parametrize("target", ["study", "rehearsal"])
def test_a_download_without_git_is_told_what_to_do_before_anything_is_installed(make, target):
    assert "is no git clone, which DVC needs: clone the repository, or run `git init` here" in refusal(make(target))


def test_a_clone_of_somebody_else_is_told_what_to_do(make, tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert make("checkout").returncode == 0
    done = make("checkout", GIT_TEST_ASSUME_DIFFERENT_OWNER="1")
    assert f"belongs to another user: git config --global --add safe.directory {tmp_path}" in refusal(done)


def test_a_user_without_a_name_or_a_home_has_both_in_what_make_starts(make, tmp_path):
    name, home, _ = make(
        "--eval", SHOW, "show", programs={"id": 'test "$1" = -u && echo 4711'}, HOME="/nowhere"
    ).stdout.split("|")
    assert (name, home) == ("user4711", f"{tmp_path}/.venv")
    name, home, _ = make("--eval", SHOW, "show", programs={"id": "echo somebody"}, LOGNAME="me").stdout.split("|")
    assert (name, home) == ("me", str(tmp_path))


def test_the_environments_own_kernels_come_first(make, tmp_path):
    paths = make("--eval", SHOW, "show", JUPYTER_PATH="/other", LOGNAME="me").stdout.strip().split("|")[2]
    assert paths == f"{tmp_path}/.venv/share/jupyter:/other"


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_root_may_open_the_notebooks(make, user, allowed):
    said = make("-n", "lab", programs={"id": f"echo {user}"}).stdout
    assert ("jupyter lab --allow-root" in said) == allowed
