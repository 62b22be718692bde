"""Losses step by step while a training runs, in a file that ``dvc plots show`` draws."""

import os
from pathlib import Path

FOLDER = "CIRLIB_LIVE"  # names the folder; unset: nothing is written


def log_step(run: str, step: int, loss: float, lr: float) -> None:
    """Adds a row to ``<run>.csv``, begun anew at step 1, in the folder that the environment variable names.

    >>> os.environ["CIRLIB_LIVE"] = str(folder)
    >>> log_step("qformer", 1, 0.5, 1e-4)
    >>> del os.environ["CIRLIB_LIVE"]
    >>> (folder / "qformer.csv").read_text()
    'step,loss,lr\\n1,0.5,0.0001\\n'
    """
    if FOLDER in os.environ:
        file = Path(os.environ[FOLDER]) / f"{run}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w" if step == 1 else "a") as stream:
            stream.write("step,loss,lr\n" * (step == 1) + f"{step},{loss:.6g},{lr:.6g}\n")
