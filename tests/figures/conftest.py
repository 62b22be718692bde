"""What the tests of figures share."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

matplotlib.use("agg")


@pytest.fixture(scope="session")
def texts() -> Callable[[Figure], list[str]]:
    """Gives every text of a figure, the wrapped ones as one line."""
    return lambda figure: [" ".join(text.get_text().split()) for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture(scope="session")
def lines() -> Callable[[Axes], dict[str, list[float]]]:
    """Gives the heights of the lines of a chart by their labels."""
    return lambda axes: {line.get_label(): list(np.asarray(line.get_ydata(), float)) for line in axes.lines}


@pytest.fixture(scope="session")
def images(tmp_path_factory, write_image: Callable[..., Path]) -> list[Path]:
    """Six images: five tall ones, one wide."""
    folder = tmp_path_factory.mktemp("images")
    sizes = [(40, 60)] * 5 + [(90, 30)]
    return [write_image(folder / f"{i}.png", seed=i, size=size) for i, size in enumerate(sizes)]
