"""Collects what the speed tests found and prints it as one table; --page=FILE writes it as a page too."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cirlib.app.environment import hardware, versions

SHOWN = ("torch", "faiss-cpu", "faiss-gpu", "transformers", "numpy", "sentence-transformers")
Report = Callable[..., None]
_LINES = pytest.StashKey[list[tuple[str, str, str, bool]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--page", metavar="FILE", help="write the table as a Markdown page, with the machine named")


def page(lines: list[tuple[str, str, str, bool]]) -> str:
    """The Markdown page of what was measured."""
    machine = "".join(f"| {what} | {value} |\n" for what, value in hardware())
    packages = ", ".join(f"{name} {version}" for name, version in versions() if name in SHOWN)
    rows = "".join(
        f"| {what} | {figure} | {target or '–'} | {'' if not target else 'met' if met else 'missed'} |\n"
        for what, figure, target, met in lines
    )
    return (
        "# Performance\n\nWritten by `make bench`: everything below was measured in one run, the ways taking turns. "
        "Ratios compare; seconds belong to this machine. FashionIQ's and the million images are random features. "
        "*Product* is the bare one of queries and gallery, *in place* where its memory is there already; the *usual* "
        "way sorts all of it and compares names, as public code does. A small tower is quickly run: BLIP-2's is "
        "counted beside it.\n\n"
        f"| | measured | aim | |\n|---|---|---|---|\n{rows}\n| machine | |\n|---|---|\n{machine}\n{packages}\n"
    )


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Add a line: what was measured, the figure, and where there is one the target and whether it was met."""
    lines = request.config.stash.setdefault(_LINES, [])
    return lambda what, figure, target="", met=True: lines.append((what, figure, target, met))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(_LINES, [])
    if lines and config.option.page:
        Path(config.option.page).write_text(page(lines), encoding="utf-8")
    if lines:
        terminalreporter.section("measured in this run")
        for what, figure, target, met in lines:
            terminalreporter.write_line(f"{what:<58} {figure:>14}   {target:<10} {'met' if met else 'MISSED'}")
