"""What is loaded when: the light parts of the library do not pull in the heavy ones."""

import subprocess
import sys

import pytest

HEAVY = {"transformers", "open_clip", "timm", "matplotlib", "seaborn", "datasets", "pandas", "sklearn", "accelerate"}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('|'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.strip().splitlines()[-1].split("|"))


@pytest.mark.parametrize(
    ("statement", "also"),
    [
        ("import cirlib", ("torch", "numpy", "faiss")),
        ("from cirlib.losses import info_nce, dpo_loss", ("faiss",)),
        ("from cirlib.metrics import target_ranks, recall_at_k", ("faiss",)),
        ("from cirlib.benchmarks import load_benchmark", ("torch", "faiss")),
        ("from cirlib.mining import mine_hard_negatives", ()),
    ],
)
def test_importing_a_light_part_loads_no_heavy_library(statement, also):
    assert loaded_by(statement) & (HEAVY | {*also}) == set()
