"""Parameters: wrong names and values give one sentence that names the parameter."""

from pathlib import Path

import pytest
import yaml

from cirlib.study.errors import ParameterError
from cirlib.study.parameters import STAGES, Data, Study, load_study, overridable, override

STUDY = Study(name="garments", data=Data(root=Path("data/garments/raw")))


def message(function, *arguments) -> str:
    with pytest.raises(ParameterError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


def write(folder: Path, **values: object) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "data": {"root": "somewhere"}, **values}))
    return path


def test_a_whole_params_file_given_to_a_notebook_is_refused_with_the_reason():
    """As `papermill -f params.yaml` gives it."""
    text = message(override, STUDY, "qformer", {"data": {"root": "raw"}, "lr": 1e-5})
    assert text.startswith("'data' is no parameter of qformer but of the whole study. params.yaml is read anyway")


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("learning_rate", "lr"), ("epoch", "epochs"), ("Lr", "lr"), ("the_seed", "seed"), ("qformer.lr", "lr")],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(name, suggestion):
    text = message(override, STUDY, "qformer", {name: None})
    assert f"unknown parameter {name!r} for qformer" in text
    assert "Allowed: accumulation, batch_size" in text
    assert f"Did you mean {suggestion!r}?" in text


@pytest.mark.parametrize("name", ["precision", "models.precision", "dpo.layers", "beta"])
def test_a_parameter_of_another_block_is_told_where_it_is_changed(name):
    whole = {"precision": "models.precision", "beta": "dpo.beta"}.get(name, name)
    told = f"'{name}' is no parameter of qformer but {whole} of params.yaml, which `dvc exp run -S {whole}=…` changes"
    assert message(override, STUDY, "qformer", {name: 1}) == told


@pytest.mark.parametrize(("queries", "images"), [("val_queries", "gallery_size"), ("train_triplets", "train_images")])
def test_more_drawn_queries_than_its_families_have_pairs_are_refused_with_the_parameters(queries, images):
    sizes = {images: 100, "family_size": 10}
    assert Study(name="t", data={}, data_prep={"drawing": {**sizes, queries: 200}})
    with pytest.raises(ValueError, match=rf"{queries} \(201\) must be at most 200, a fifth of {images} × family_size"):
        Study(name="t", data={}, data_prep={"drawing": {**sizes, queries: 201}})


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"range_min": 96}, "range_max (100) must be at least range_min + num_negatives (96 + 5)"),
        ({"nlist": 4}, "nlist and nprobe go with index ivf only, given flat"),
        ({"index": "ivf", "nlist": 4, "nprobe": 5}, "nprobe (5) must be at most nlist (4)"),
        ({"start": "finetuned"}, "start finetuned goes with fusion qformer only, given text_only"),
    ],
)
def test_values_that_do_not_go_together_are_named(values, part):
    assert part in message(override, STUDY, "dpo", values)


def test_every_value_that_is_not_allowed_is_told_with_its_parameter_and_what_is():
    text = message(override, STUDY, "qformer", {"lr": "fast", "epochs": -1, "gallery": "big", "seed": 2.5})
    for parts in (("'qformer.lr'", "number", "'fast'"), ("'qformer.epochs'", "greater than or equal to 0", "given -1"),
                  ("'evaluation.gallery'", "'original'", "'big'"), ("'seed'", "integer", "2.5")):  # fmt: skip
        assert all(part in text for part in parts)
    assert "the parameters of qformer" in text


def test_an_override_changes_just_that_and_leaves_the_study_alone():
    changed = override(STUDY, "qformer", {"lr": 5e-5, "reference": "kept", "epochs": None})
    assert changed.qformer.lr == 5e-5
    assert changed.evaluation.reference == "kept"
    expected = STUDY.model_dump()
    expected["qformer"]["lr"], expected["evaluation"]["reference"] = 5e-5, "kept"
    assert changed.model_dump() == expected
    assert Study(name="garments", data=STUDY.data) == STUDY


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_takes_its_block_the_protocol_and_the_seed(stage):
    names = overridable(stage)
    block = type(getattr(STUDY, stage)).model_fields
    assert set(names) == {*block, "seed", "gallery", "reference", "captions"}
    assert override(STUDY, stage, dict.fromkeys(names)) == STUDY


def test_what_is_dumped_loads_to_the_same_study(tmp_path):
    changed = override(STUDY, "qformer", {"lr": 3e-5, "fusion": "two_pass"})
    assert load_study(write(tmp_path, **changed.model_dump(mode="json"))) == changed


def test_yaml_that_reads_1e_5_as_text_still_gives_the_number(tmp_path):
    (tmp_path / "params.yaml").write_text("name: x\ndata: {root: r}\nqformer: {lr: 1e-5}\n")
    assert load_study(tmp_path / "params.yaml").qformer.lr == 1e-5


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"qformer": {"learning_rate": 1}}, "parameter 'qformer.learning_rate' in"),
        ({"qfromer": {}}, "parameter 'qfromer' in"),
        ({"data": {}}, "one of data.root and data_prep.drawing must be given, and the other null"),
        ({"data_prep": {"drawing": {}}}, "one of data.root and data_prep.drawing must be given, and the other null"),
        ({"models": {"image_size": 100}}, "multiple of 32, given 100"),
        ({"data": {}, "data_prep": {"drawing": {"gallery_size": 1}}}, "'data_prep.drawing.gallery_size' in"),
        ({"data": {}, "data_prep": {"drawing": {"family_size": 51}}}, "'data_prep.drawing.family_size' in"),
        ({"qformer": {"hard_negatives": 9, "range_max": 8}}, "at least hard_negatives"),
        ({"name": "a/b"}, "parameter 'name' in"),
        ({"data": {"root": "r", "dev_fraction": 0.5}}, "'data.dev_fraction'"),
        ({"zero_shot": {"weights": [0.5, 1.5]}}, "'zero_shot.weights.1'"),
        ({"seed": 10**15}, "parameter 'seed' in"),
        ({"qformer": {"lr": float("nan")}}, "'qformer.lr'"),
        ({"qformer": {"epochs": True}}, "should be a whole number, given True"),
        ({"data": {"root": "r", "split": "train"}}, "split must not be train"),
        ({"data": {"root": "r", "benchmark": "cirr", "fetch": True}}, "fetch must be false for cirr"),
    ],
)
def test_a_wrong_file_names_the_parameter_and_the_file(tmp_path, values, part):
    path = write(tmp_path, **values)
    text = message(load_study, path)
    assert part in text
    assert str(path) in text


@pytest.mark.parametrize(
    ("text", "part"),
    [(None, "No such file"), ("- 1\n- 2\n", "names no parameters"), ("a: [1, 2\nb: }", "is no file of YAML")],
)
def test_a_missing_or_odd_file_is_named(tmp_path, text, part):
    if text:
        (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParameterError, match=rf"params\.yaml.*{part}"):
        load_study(tmp_path / "params.yaml")


def test_a_misspelt_key_of_a_file_is_told_with_the_one_that_was_meant(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("{name: mine, data: {root: here}, evaluation: {captoins: and}}")
    with pytest.raises(
        ParameterError, match=r"unknown parameter 'evaluation.captoins' .* mean 'evaluation.captions'\?"
    ):
        load_study(file)
    file.write_text("")
    with pytest.raises(ParameterError, match="names no parameters"):
        load_study(file)
