"""Collects what the benchmarks found and prints it as one table; --benchmark-json=FILE saves it too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Report = Callable[[str, str, str, bool], None]
_LINES = pytest.StashKey[list[tuple[str, str, str, bool]]]()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Add a line: what was measured, the figure, the target, whether it was met."""
    lines = request.config.stash.setdefault(_LINES, [])
    return lambda *line: lines.append(line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(_LINES, [])
    if lines:
        terminalreporter.section("measured in this run")
        for what, figure, target, met in lines:
            terminalreporter.write_line(f"{what:<58} {figure:>14}   {target:<10} {'met' if met else 'MISSED'}")
