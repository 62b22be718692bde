"""The committed notebooks: clean, with the parameters their stage takes; and each run small through papermill."""

import ast
import json
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import yaml
from small_studies import NOTEBOOKS, compose, execute, run_all

from cirlib.app.search import Search
from cirlib.models.prepared import open_prepared
from cirlib.study.parameters import STAGES, load_study, overridable
from cirlib.study.stage import PARAMETERS_MARK, Stage, assigned_names

STAGE_OF = {path.name: path.stem.split("_", 1)[1] for path in NOTEBOOKS}


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_is_a_notebook_for_every_stage():
    assert set(STAGE_OF.values()) == set(STAGES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_clean_and_takes_every_parameter_of_its_stage(path):
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"
    first, *others = code_cells(path)
    assert not any(cell.outputs or cell.execution_count for cell in (first, *others))
    assert first.metadata.get("tags") == ["parameters"]
    assert first.source.startswith(PARAMETERS_MARK)
    assert assigned_names(first.source) == set(overridable(STAGE_OF[path.name]))
    told = papermill.inspect_notebook(path)  # what `papermill --help-notebook` shows
    assert {parameter["default"] for parameter in told.values()} == {"None"}
    assert "None" not in {parameter["inferred_type_name"] for parameter in told.values()}
    assert not any("parameters" in cell.metadata.get("tags", []) for cell in others)
    nodes = [node for cell in others for node in ast.walk(ast.parse(cell.source))]
    assert all(node.end_lineno - node.lineno < 5 for node in nodes if isinstance(node, ast.FunctionDef))


# ------------------------------------------------------------------------------------------ run small


def results_of(root: Path) -> dict[str, bytes]:
    files = [*(root / "results").rglob("*"), *(root / "figures").rglob("*")]
    return {str(file.relative_to(root)): file.read_bytes() for file in files if file.is_file()}


def test_every_stage_leaves_its_tables_and_figures(small_project):
    results = small_project / "results" / "garments"
    summary = pd.read_csv(results / "summary.csv")
    methods = ["image_only", "text_only", "sum", "slerp", "prompt_tuned"]
    methods += ["qformer_pretrained", "qformer", "qformer_hard_negatives", "retrieval_dpo"]
    methods += ["retrieval_dpo_projection"]
    assert list(summary["method"].unique()) == methods
    assert set(summary["category"]) == {"dress", "shirt", "toptee", "mean"}
    assert summary["value"].between(0, 1).all()
    assert (summary["ci_low"] <= summary["value"]).all()
    assert (summary["value"] <= summary["ci_high"]).all()
    assert set(summary.loc[summary["category"] == "mean", "queries"]) == {36}
    assert set(summary["gallery"]) == {49}  # the reference is left out
    figures = {path.name for path in (small_project / "figures" / "garments").rglob("*.png")}
    assert {"triplets.png", "recall.png", "learning_curves.png", "rewards.png", "before_after.png"} <= figures
    assert {"worst.png", "kinds.png", "ranks.png", "protocols.png", "retrievals.png"} <= figures
    assert (results / "qformer" / "checkpoints" / "qformer" / "model.safetensors").is_file()
    trainings = {path.parent.parent.name for path in (small_project / "runs" / "garments").rglob("state.pt")}
    assert {"pretraining", "qformer", "qformer_hard_negatives", "prompt_tuned", "retrieval_dpo"} <= trainings


@pytest.mark.slow
def test_an_override_from_the_notebooks_folder_leaves_the_pipelines_results(small_project):
    before = results_of(small_project)
    execute(small_project, "02_zero_shot.ipynb", cwd=small_project / "notebooks", weights=[0.0, 0.25])
    assert results_of(small_project) == before
    (run,) = (small_project / "runs" / "garments").glob("zero_shot-*")
    assert (run / "summary.csv").is_file()
    assert (run / "figures" / "recall.png").is_file()


@pytest.mark.slow
def test_the_template_puts_a_method_of_one_s_own_beside_the_study_and_leaves_its_results(small_project):
    before = results_of(small_project)
    said = execute(small_project, "07_your_method.ipynb").cells[-1].outputs[0].text
    assert said.startswith("my method: ") and "the best zero-shot method" in said
    after = results_of(small_project)
    assert {name for name in after if after[name] != before.get(name)} == {
        f"{kind}/garments/{file}"
        for kind, file in (
            *(("results", f"your_method/{name}") for name in ("summary.csv", "ranks.csv")),
            *(("figures", f"your_method/{name}") for name in ("recall.png", "kinds.png", "worst.png")),
            ("results", "provenance/your_method.json"),
        )
    }


@pytest.mark.slow
def test_two_runs_of_a_training_give_the_same_metrics(small_project, tmp_path):
    for tag in ("first", "second"):
        execute(small_project, "03_qformer.ipynb", lr=1e-3, epochs=1)
        (run,) = (small_project / "runs" / "garments").glob("qformer-*")
        run.rename(tmp_path / tag)
    for name in ("summary.csv", "ranks.csv"):
        assert (tmp_path / "first" / name).read_text() == (tmp_path / "second" / name).read_text()


@pytest.mark.slow
def test_real_photos_in_fashioniqs_format_take_the_same_road(small_project, real_data, tmp_path):
    photos = real_data("photos")
    study = yaml.safe_load((small_project / "params.yaml").read_text())
    heads = small_project / "data" / "garments" / "prepared" / "two_towers.safetensors"
    trained = small_project / "results" / "garments" / "qformer" / "checkpoints" / "qformer"
    study["name"] = "custom"
    study["data"] |= {"root": str(photos)}
    study["models"] |= {"clip_pretrained": str(heads), "fusion_checkpoint": str(trained)}
    study["data_prep"]["drawing"] = None
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(study))
    run_all(tmp_path)
    summary = pd.read_csv(tmp_path / "results" / "custom" / "summary.csv")
    assert list(summary["method"].unique()) == ["image_only", "text_only", "sum", "slerp", "qformer"]
    assert set(summary["queries"]) == {60}


@pytest.mark.slow
def test_photographs_with_a_table_become_a_study_that_searches_all_of_them(real_data, tmp_path):
    source, folder = real_data("catalogue"), tmp_path / "shop"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("images"))
    reported = {*json.loads((folder / "image_splits/split.shop.val.json").read_text())}
    table = pd.read_csv(folder / "catalogue.csv", dtype=str, keep_default_na=False)
    table = table[table["image"].isin(reported) | (table.index % 9 == 0)]
    table.to_csv(folder / "catalogue.csv", index=False)
    (folder / "images").mkdir()
    for image in table["image"]:
        (folder / "images" / f"{image}.jpg").symlink_to(source / "images" / f"{image}.jpg")
    compose(
        tmp_path / "params.yaml", "study=catalogue", f"data.root={folder}", "models.image_size=64", "dpo.edits=64",
        "qformer.epochs=1", "qformer.mine_from=0", "qformer.pretraining_epochs=1", "qformer.method_epochs=1",
        "qformer.edits=128", "qformer.prompt_edits=64", "data_prep.num_workers=0",
    )  # fmt: skip
    run_all(tmp_path)
    summary = pd.read_csv(tmp_path / "results/catalogue/summary.csv").query(
        "metric == 'recall@10' and category == 'mean'"
    )
    values = summary.set_index("method")["value"]
    assert {"sum", "qformer", "joint_sum"} <= set(values.index) and (summary["gallery"] == 999).all()
    assert values["joint_sum"] > 3 * summary["chance"].iloc[0]
    out = tmp_path / "none"
    search = Search(open_prepared(Stage("search", load_study(tmp_path / "params.yaml"), tmp_path, out, out, {})))
    assert len(search.images) == len(table) > 1200
    hits = search.search(search.reference(search.images[0]), "is red", "joint_sum", category="whole catalogue", count=5)
    assert len(hits) == 5


@pytest.mark.slow
def test_the_rehearsal_takes_every_stage_of_the_fashioniq_study(small_rehearsal):
    results = small_rehearsal / "results" / "fashioniq_rehearsal"
    summary = pd.read_csv(results / "summary.csv")
    methods = ["image_only", "text_only", "sum", "slerp", "prompt_tuned"]
    methods += ["qformer_pretrained", "qformer", "qformer_hard_negatives", "retrieval_dpo"]
    methods += ["retrieval_dpo_projection"]
    assert list(summary["method"].unique()) == methods
    audit = pd.read_csv(results / "data_prep" / "audit.csv")
    assert audit["queries"].tolist() == [30] * 3 + [12] * 3
    assert audit["missing"].sum() == audit["undecodable"].sum() == 0
    beside = pd.read_csv(results / "paper_vs_ours.csv")
    assert set(beside.loc[beside["source"] == "ours", "data"]) == {"fashioniq_rehearsal"}
    said = (small_rehearsal / "runs" / "executed" / "01_data_prep.ipynb").read_text()
    assert "Not as published: " in said and "val dress queries: 12, expected 2017." in said
    assert "images, tokens, channels: (132, 5, 24)" in said


@pytest.mark.slow
def test_the_qformer_trains_in_every_form_without_cached_tokens(small_rehearsal, tmp_path):
    root = tmp_path / "project"
    shutil.copytree(small_rehearsal, root)
    study = yaml.safe_load((root / "params.yaml").read_text())
    study["models"] |= {"cache_tokens": False, "precision": "bf16"}
    (root / "params.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(papermill.PapermillExecutionError, match=r"models\.cache_tokens=True, now it is False"):
        execute(root, "03_qformer.ipynb")
    execute(root, "01_data_prep.ipynb")
    shutil.rmtree(root / "data" / "fashioniq_rehearsal" / "prepared" / "tokens")
    forms = {"fusion": "two_pass", "target": "mean", "accumulation": 2, "gradient_checkpointing": True}
    execute(root, "03_qformer.ipynb", epochs=1, mine_from=0, **forms)
    (run,) = (root / "runs" / "fashioniq_rehearsal").glob("qformer-*")
    assert pd.read_csv(run / "summary.csv")["value"].between(0, 1).all()
    assert not (root / "data" / "fashioniq_rehearsal" / "prepared" / "tokens").exists()


@pytest.mark.slow
def test_a_missing_picture_stops_the_study_with_the_count_and_the_parameter_that_allows_it(small_rehearsal, tmp_path):
    root = tmp_path / "project"
    shutil.copytree(small_rehearsal, root)
    (root / "data" / "fashioniq_rehearsal" / "raw" / "images" / "dress-val-3.jpg").unlink()
    with pytest.raises(papermill.PapermillExecutionError, match="1 of 13 gallery images are missing, which costs 2"):
        execute(root, "01_data_prep.ipynb")
    listed = pd.read_csv(root / "results" / "fashioniq_rehearsal" / "data_prep" / "missing_images.csv")
    assert listed["image"].tolist() == ["dress-val-3"]
    study = yaml.safe_load((root / "params.yaml").read_text())
    study["data"]["allow_missing"] = True
    (root / "params.yaml").write_text(yaml.safe_dump(study))
    for name in ("01_data_prep.ipynb", "02_zero_shot.ipynb"):
        execute(root, name)
    summary = pd.read_csv(root / "results" / "fashioniq_rehearsal" / "zero_shot" / "summary.csv")
    assert set(summary.loc[summary["category"].isin(["dress", "mean"]), "complete"]) == {False}
