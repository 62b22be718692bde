"""On what, when and with which parameters a stage was computed; and that one study is never put together from two."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cirlib.study.errors import StageError
from cirlib.study.files import read_json, write_json
from cirlib.study.stage import Stage

Provenance = dict[str, Any]


def provenance_file(root: Path, study: str, stage: str) -> Path:
    """Of the pipeline's own results of ``stage``; no stage depends on it, for times differ with every run.

    >>> provenance_file(folder, "garments", "dpo").name
    'dpo.json'
    """
    return root / "results" / study / "provenance" / f"{stage}.json"


def write_provenance(stage: Stage, facts: Mapping[str, Any]) -> None:
    """Keeps ``facts`` (JSON-able) and the parameters in force beside what the stage computed.

    >>> write_provenance(stage, {"machine": "this one"})
    """
    own = provenance_file(stage.root, stage.study.name, stage.name)
    file = stage.out / "provenance.json" if stage.overrides else own
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json({**facts, "parameters": _decisive(stage, stage.name)}, file)


def read_provenance(root: Path, study: str, stages: tuple[str, ...]) -> dict[str, Provenance]:
    """Stage → its facts, of those that ran.

    >>> read_provenance(folder, "garments", ("dpo",))
    {}
    """
    files = {stage: provenance_file(root, study, stage) for stage in stages}
    return {stage: read_json(file) for stage, file in files.items() if file.is_file()}


def require_same(stage: Stage, earlier: str) -> None:
    """StageError where ``earlier`` has not run, or was computed with parameters that are not those of ``stage``.

    Another seed of this notebook alone is none of them.

    >>> write_provenance(stage, {})
    >>> require_same(stage, stage.name)
    """
    import pandas as pd

    file = stage.require(provenance_file(stage.root, stage.study.name, earlier), earlier)
    both = read_json(file)["parameters"], _decisive(stage, earlier)
    then, now = (pd.json_normalize(blocks).iloc[0].to_dict() for blocks in both)  # by dotted names
    for name in now:
        if then.get(name) != now[name] and name not in stage.overrides:
            said = f"{earlier} was computed with {name}={then.get(name)}, now it is {now[name]}"
            raise StageError(f"{stage.name} works on one study, but {said}: run `dvc repro {earlier}` first")


def _decisive(stage: Stage, name: str) -> dict[str, Any]:
    """The parameters by block that decide what the stage ``name`` computes, whatever the protocol is."""
    blocks = stage.study.model_dump(mode="json", include={"name", "seed", "data", "models", name})
    blocks[name].pop("retrain", None)
    return blocks
