"""The study's trainings repeated with other seeds on the same data: what of a number is the luck of one training.

``python -m cirlib.app.seeds --count 3`` writes ``results/<study>/seeds.csv``: the study's own run and two more. Each of
those is a project of its own in ``runs/<study>/seeds/seed-<n>``, where 02, 03 and 04 (without its grid) run on the
study's data and encoded images; the pair of small towers is aligned anew. What has run is not run again.
"""

import argparse
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import papermill
import yaml
from nbclient.exceptions import DeadKernelError

from cirlib.app.report import SEED_COLUMNS, read_summary, read_table, seed_spread
from cirlib.app.run_stage import KILLED, STOPPED
from cirlib.study.code_hash import code_hash
from cirlib.study.errors import ParameterError, StageError, StudyError
from cirlib.study.files import write_bytes, write_table
from cirlib.study.locks import alone
from cirlib.study.parameters import Study, load_study
from cirlib.study.provenance import write_provenance
from cirlib.study.stage import Stage, project_root

NOTEBOOKS = {"zero_shot": "02_zero_shot.ipynb", "qformer": "03_qformer.ipynb", "dpo": "04_dpo.ipynb"}


def repeat_study(root: Path, count: int) -> pd.DataFrame:
    """The study's own numbers and those of ``count`` - 1 further seeds; writes and gives ``seeds.csv``.

    Columns: method, metric, category, seed, value in [0, 1]. ParameterError: fewer than two seeds. StageError: the
    study has not run here, another run repeats it, or a repetition failed.

    >>> repeat_study(folder, 1)
    Traceback (most recent call last):
    cirlib.study.errors.ParameterError: N is 1, at least 2 seeds show a spread
    """
    if count < 2:
        raise ParameterError(f"N is {count}, at least 2 seeds show a spread")
    study = load_study(root / "params.yaml")
    tables = [_rows(read_summary(root, study.name), study.seed)]
    contents = root / "results" / study.name / "data_prep" / "contents.json"
    for needed in (contents, root / "data" / study.name / "prepared" / "clip"):
        if not needed.exists():
            raise StageError(f"seeds need {needed.relative_to(root)}, which is missing: run `dvc repro` first")
    with alone(root / "runs" / study.name / "locks" / "seeds.lock", f"runs/{study.name}/seeds"):
        for seed in range(study.seed + 1, study.seed + count):
            print(f"seed {seed}", flush=True)
            home = _open_home(root, study.model_copy(update={"seed": seed}), contents.read_text())
            for stage, notebook in NOTEBOOKS.items():
                _run_once(home, notebook)
                tables.append(_rows(read_table(home / "results" / study.name / stage / "summary.csv"), seed))
        table = pd.concat(tables, ignore_index=True)
        write_table(table, root / "results" / study.name / "seeds.csv")
    return table


def _rows(summary: pd.DataFrame, seed: int) -> pd.DataFrame:
    return summary.assign(seed=seed)[list(SEED_COLUMNS)]


def _open_home(root: Path, study: Study, contents: str) -> Path:
    """The repetition's own project; one made of other parameters, data or code is made anew."""
    home = root / "runs" / study.name / "seeds" / f"seed-{study.seed}"
    params = _with_paths_from(root, study)
    state = hashlib.sha256(f"{params}{contents}{_code(root)}".encode()).hexdigest()
    if not (home / "state.txt").is_file() or (home / "state.txt").read_text() != state:
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(root / "notebooks", home / "notebooks")
        shutil.copy(root / "dvc.yaml", home)
        write_bytes(yaml.safe_dump(params).encode(), home / "params.yaml")
        _link_data(root / "data" / study.name / "prepared", home / "data" / study.name / "prepared")
        write_bytes(state.encode(), home / "state.txt")
    _align(home)
    return home


def _with_paths_from(root: Path, study: Study) -> dict[str, Any]:
    """The parameters, without 04's grid; what they name in the project is named so that other folders find it."""
    params = study.model_dump(mode="json")
    params["dpo"]["grid"] = "none"
    for block, names in {"data": ["root"], "models": ["clip_pretrained", "fusion", "fusion_checkpoint"]}.items():
        for name in names:
            if params[block][name] and (root / params[block][name]).exists():
                params[block][name] = str(root / params[block][name])
    return params


def _code(root: Path) -> str:
    """What the repeated stages run, as dvc.yaml names it: the notebooks, and a hash of the library's folders."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    named = sorted({name for stage in NOTEBOOKS for name in stages[stage]["deps"]})
    folders = [name.removeprefix("cirlib/") for name in named if name.startswith("cirlib/")]
    return "".join((root / name).read_text() for name in named if name.endswith(".ipynb")) + code_hash(*folders)


def _link_data(data: Path, own: Path) -> None:
    """Encoded images are the study's; towers that it aligned itself are not."""
    own.mkdir(parents=True)
    aligned = {"clip", "two_towers.safetensors"} if (data / "two_towers.safetensors").exists() else set()
    for path in data.iterdir():
        if path.name not in aligned:
            (own / path.name).symlink_to(path)


def _align(home: Path) -> None:
    """What data preparation does with another seed: aligns small towers and embeds, where the study aligned some."""
    from accelerate.utils import set_seed

    from cirlib.models.preparation import align_towers, encode_two_towers
    from cirlib.models.prepared import Prepared

    study = load_study(home / "params.yaml")
    out = home / "results" / study.name / "data_prep"
    stage = Stage("data_prep", study, home, out, out, {})
    if not (stage.data / "clip").exists():
        set_seed(study.seed)
        prepared = Prepared(stage)
        align_towers(prepared)
        encode_two_towers(prepared)
    write_provenance(stage, {})


def _run_once(home: Path, notebook: str) -> None:
    """Runs a notebook of the repetition to its end, where it has not run; a training that was stopped goes on."""
    executed, running = home / "executed" / notebook, home / "running.ipynb"
    if executed.is_file():
        return
    executed.parent.mkdir(exist_ok=True)
    try:
        papermill.execute_notebook(home / "notebooks" / notebook, running, cwd=home, kernel_name="python3")
    except papermill.PapermillExecutionError as error:
        said = f"{error.ename}: {error.evalue}"
        raise StageError(f"{home.name}: {notebook} failed ({said}): {running} has the rest") from error
    except DeadKernelError as error:
        raise StageError(f"{home.name}: {notebook} failed: {KILLED}") from error
    running.replace(executed)


def main() -> None:
    """Repeats the study's trainings; writes results/<study>/seeds.csv and shows mean and spread over the seeds."""
    parser = argparse.ArgumentParser(prog="python -m cirlib.app.seeds", description=main.__doc__)
    parser.add_argument("--count", type=int, default=3, metavar="N", help="seeds in all, the study's own among them")
    arguments = parser.parse_args()
    try:
        table = repeat_study(project_root(), arguments.count)
    except StudyError as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(1, f"{STOPPED}\n")
    print(f"\nPercent, mean of the categories: mean ± standard deviation (range) over {arguments.count} seeds")
    print(seed_spread(table).to_string())


if __name__ == "__main__":
    main()
