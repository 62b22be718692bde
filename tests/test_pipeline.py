"""The pipeline's files agree with each other and with the code; and a small study reproduces from a fresh clone."""

import hashlib
import re
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from small_studies import ROOT, SMALL, compose, dvc, git
from test_structure import imports

from cirlib.study.parameters import STAGES, Study, load_study

STUDIES = sorted(path.stem for path in (ROOT / "conf" / "study").glob("*.yaml"))
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def test_the_committed_parameters_are_what_the_garments_study_composes(tmp_path):
    assert (ROOT / "params.yaml").read_text() == compose(tmp_path / "params.yaml", "study=garments").read_text()


def test_the_studies_are_those_of_the_design_sprcs_the_rehearsal_and_the_large_garments():
    real = ["catalogue", "circo", "cirr", "custom", "fashioniq", "fashioniq_rehearsal", "fashioniq_sprc"]
    assert [*real, "garments", "garments_large", "sprc_released"] == STUDIES


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_is_valid_and_names_every_parameter(tmp_path, study):
    path = compose(tmp_path / "params.yaml", f"study={study}", *["data.root=shop"] * (study == "catalogue"))
    loaded = load_study(path)
    assert loaded.name == study
    written, known = (pd.json_normalize(d) for d in (yaml.safe_load(path.read_text()), loaded.model_dump(mode="json")))
    assert set(written) == set(known)


def test_a_custom_catalogue_starts_from_a_q_former_of_the_garments_studys_own_shape(tmp_path):
    names = ("garments", "custom")
    garments, custom = (load_study(compose(tmp_path / "params.yaml", f"study={name}")) for name in names)
    shape = {"num_query_tokens", "width", "layers", "fusion", "target"}
    assert custom.qformer.model_dump(include=shape) == garments.qformer.model_dump(include=shape)
    assert custom.models.image_size == garments.models.image_size
    assert custom.data_prep.drawing is None


def test_what_a_study_leaves_out_has_the_same_value_in_conf_and_in_the_library():
    base = yaml.safe_load((ROOT / "conf" / "base.yaml").read_text().replace("???", "given"))
    defaults = Study(name="given", data={"root": "given"}).model_dump(mode="json")
    assert base == defaults | {"data": defaults["data"] | {"root": None}}


def test_the_stages_of_the_pipeline_are_those_that_have_parameters():
    assert [*PIPELINE, "search", "your_method"] == list(STAGES)  # the last two are looked at, not run


@pytest.mark.parametrize("stage", list(PIPELINE))
def test_every_output_names_the_study_and_is_kept_and_shared_by_dvc(stage):
    outputs = [out for kind in ("outs", "plots") for out in PIPELINE[stage].get(kind, [])]
    assert all("/${name}/" in out for out in outputs)  # as plain text: no option that keeps it out of the cache


@pytest.mark.parametrize("stage", list(PIPELINE))
def test_a_stage_names_parameters_that_exist_and_its_own_block(stage):
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert stage in PIPELINE[stage]["params"]
    for name in PIPELINE[stage]["params"]:
        reduce(getitem, name.split("."), values)


# Rooms that show numbers and compute none.
PRESENTATION = ("cirlib/figures", "cirlib/app")


@pytest.mark.parametrize("stage", list(PIPELINE))
def test_a_stage_depends_on_every_file_that_can_change_its_numbers(stage):
    (notebook,) = [d for d in PIPELINE[stage]["deps"] if d.endswith(".ipynb")]
    folders = [d for d in PIPELINE[stage]["deps"] if d.startswith("cirlib/")]
    examples = () if stage == "failure_cases" else ("cirlib/analysis/failures",)  # pictures of some queries
    computing = {
        file
        for file in imported(ROOT / notebook)
        if not file.startswith((*PRESENTATION, *examples))
        and file not in ("cirlib/__init__.py", "cirlib/analysis/__init__.py")
    }
    assert {file for file in computing if not file.startswith(tuple(f"{d}/" for d in folders))} == set()
    assert [d for d in folders if not any(file.startswith(f"{d}/") for file in computing)] == []
    assert 2 <= len(folders) <= 7
    assert all((ROOT / d).is_dir() for d in folders)


def imported(notebook: Path) -> set[str]:
    """Every file of cirlib that the notebook imports, directly or not."""
    cells = nbformat.read(notebook, as_version=4).cells
    found: set[str] = set()
    todo = files_of("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
    while todo:
        found.add(file := todo.pop())
        todo |= files_of((ROOT / file).read_text(), file) - found
    return found


def files_of(source: str, file: str = "") -> set[str]:
    """The files of cirlib that ``source`` imports: modules, and packages of names in them."""
    names = {module.rpartition(".")[0] for module in imports(source, file)} | set(imports(source, file))
    paths = [name.replace(".", "/") for name in names]
    return {f for path in paths for f in (f"{path}.py", f"{path}/__init__.py") if path and (ROOT / f).is_file()}


# ------------------------------------------------------------------------------------------ from a clone


def test_a_fresh_clone_reproduces_and_leaves_nothing_that_git_would_ask_about(small_project):
    assert git(small_project, "status", "--porcelain") == ""
    tracked = git(small_project, "ls-files", "results", "data", "figures").splitlines()
    assert tracked == ["data/README.md", "figures/README.md"]
    executed = sorted((small_project / "results" / "garments" / "notebooks").glob("*.ipynb"))
    assert len(executed) == len(PIPELINE)


def test_with_nothing_changed_nothing_runs(small_project):
    out = dvc(small_project, "repro")
    assert "Running stage" not in out
    assert len(re.findall(r"didn't change, skipping", out)) == len(PIPELINE)


def test_dvc_shows_metrics_and_plots_of_every_stage(small_project):
    head, numbers = dvc(small_project, "metrics", "show").splitlines()
    assert head.split() == ["Path", "qformer", "qformer_hard_negatives", "retrieval_dpo", "sum"]
    assert len(numbers.split()) == 5 and len(head) <= 100
    dvc(small_project, "plots", "show", "--out", "plots")
    page = (small_project / "plots" / "index.html").read_text()
    pictures = re.findall(r'src="(static/[^"]+\.png)"', page)
    assert "learning_curves.png" in page
    assert pictures and all((small_project / "plots" / picture).is_file() for picture in pictures)


def contents(root: Path) -> dict[str, str]:
    """The SHA-256 of every file that the pipeline's stages give, by its path."""
    named = [out for stage in PIPELINE.values() for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
    outputs = [root / next(iter(out)) if isinstance(out, dict) else root / out for out in named]
    outputs = [Path(str(out).replace("${name}", "garments")) for out in outputs]
    files = [file for out in outputs for file in (out.rglob("*") if out.is_dir() else [out]) if file.is_file()]
    assert len(files) >= len(outputs)
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def clone(small_project, tmp_path) -> Path:
    return shutil.copytree(small_project, tmp_path / "study", symlinks=True)


def test_what_ran_once_comes_back_whole_without_running(clone):
    before = contents(clone)
    for kind in ("data", "results", "figures"):
        shutil.rmtree(clone / kind / "garments")
    (clone / "dvc.lock").unlink()
    out = dvc(clone, "repro")
    assert "is cached - skipping run" in out and "Running stage" not in out
    assert contents(clone) == before


@pytest.mark.slow
def test_a_colleague_pulls_what_was_pushed(clone, tmp_path):
    dvc(clone, "remote", "add", "-d", "shared", str(tmp_path / "shared"))
    dvc(clone, "push")
    git(clone, "commit", "-qam", "shared")
    colleague = tmp_path / "colleague"
    git(tmp_path, "clone", "-q", str(clone), str(colleague))
    dvc(colleague, "pull")
    assert contents(colleague) == contents(clone)
    assert "didn't change, skipping" in dvc(colleague, "repro")


@pytest.mark.slow
def test_another_study_leaves_the_first_alone(clone):
    shutil.rmtree(clone / "results")
    dvc(clone, "checkout")  # what DVC put there itself, it takes away by default
    before = contents(clone)
    with pytest.raises(AssertionError, match=r"models.image_size.* greater than or equal to 32, given 1"):
        dvc(clone, "exp", "run", "-S", "name=other", "-S", "models.image_size=1")
    assert contents(clone) == before


@pytest.mark.slow
def test_changing_the_qformer_reruns_it_and_what_follows_only(small_project, clone):
    before_all = contents(clone)
    out = dvc(clone, "exp", "run", "-S", "qformer.lr=3.0e-5", *(f"-S{value}" for value in SMALL))
    ran = re.findall(r"Running stage '(\w+)'", out)
    assert ran == ["qformer", "dpo", "failure_cases"]
    assert yaml.safe_load((clone / "params.yaml").read_text())["qformer"]["lr"] == 3.0e-5
    assert "qformer" in dvc(clone, "metrics", "diff", "--all", "HEAD")
    before, after = (pd.read_csv(root / "results" / "garments" / "summary.csv") for root in (small_project, clone))
    assert set(after["method"]) == set(before["method"])
    changed, experiment = contents(clone), dvc(clone, "exp", "list", "--names-only").split()[-1]
    out = dvc(clone, "exp", "run", *(f"-S{value}" for value in SMALL))
    assert "Running stage" not in out and contents(clone) == before_all
    dvc(clone, "exp", "apply", experiment)
    assert contents(clone) == changed
