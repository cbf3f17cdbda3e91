"""pytest exercises/: one line for each exercise that is not done. No tracebacks, one process.

--solutions marks the project's own code instead, and known wrong answers, which must be caught.
"""

from textwrap import fill

import pytest


def pytest_addoption(parser):
    parser.addoption("--solutions", action="store_true", help="mark the project's own code")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    option = config.option
    if all("exercises" in argument for argument in config.args):
        option.tbstyle, option.reportchars = "no", ""
        if hasattr(option, "numprocesses"):  # starting more takes longer than marking
            option.numprocesses, option.dist = 0, "no"


def pytest_ignore_collect(collection_path, config):
    ignored = "test_exercises.py" if config.option.solutions else "test_solutions.py"
    return True if collection_path.name == ignored else None


def pytest_terminal_summary(terminalreporter, config):
    for report in terminalreporter.getreports("failed") if config.option.tbstyle == "no" else ():
        name = report.nodeid.split("[")[-1].rstrip("]")
        line = f"{name:<21} {report.longreprtext}"
        terminalreporter.write_line(fill(line, 79, subsequent_indent=" " * 22))
