"""What the tests share: the scripts as modules and as commands, and a text of their own."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# The tests' models are tiny: threads would wait for one another more than they compute. It also
# holds for the processes that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from common.kit import corpus, download  # noqa: E402
from common.kit.cli import run  # noqa: E402

SCRIPTS = {int(path.name[0]): path for path in sorted(ROOT.glob("[0-9]_*.py"))}


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No test reaches a network or writes into the project: the Hub is off, the download is at a
    closed port, and both the data folder and the current one are the test's own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE_URL", "http://127.0.0.1:9/input.txt")
    monkeypatch.setattr(download, "DATA_DIR", tmp_path / "data")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quick_peak(monkeypatch):
    """Scripts in this process do not measure the device's peak, which takes a second."""
    for module in ("kit.measure", "ladder"):
        monkeypatch.setattr(f"common.{module}.matmul_peak", lambda device, dtype: 1e11)


def load_script(stage: int):
    """A numbered script as a module."""
    spec = importlib.util.spec_from_file_location(f"stage_{stage}", SCRIPTS[stage])
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(capsys):
    """call(stage, *options) → (exit code, stdout, stderr), in this process."""

    def call(stage: int, *options: str):
        script = load_script(stage)
        try:
            run(script.main, script.Options, [*options, "--device", "cpu"])
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def refused(call):
    """refused(words, stage, *options): the script must end with one line that holds words."""

    def refused(words: str, stage: int, *options: str) -> None:
        code, _, stderr = call(stage, *options)
        assert code == 2
        assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
        assert words in stderr

    return refused


def run_script(stage: int, *options: str, cwd: Path, **kwargs) -> subprocess.CompletedProcess:
    """A script as a user runs it: a new process, from another folder."""
    command = [sys.executable, str(SCRIPTS[stage]), *options]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, **kwargs)


def started(stage: int, *options: str, cwd: Path, until: str, command=(sys.executable,)):
    """A script in a process of its own, with Ctrl-C as a terminal gives it, once it has printed a
    line that starts with `until`."""
    process = subprocess.Popen(
        [*command, str(SCRIPTS[stage]), *options], cwd=cwd, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith(until):
            return process
    raise AssertionError(process.stderr.read())


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """Some 3,000 tokens of prose that no corpus holds."""
    path = tmp_path_factory.mktemp("text") / "counting.txt"
    words = "the keeper counted {} waves and wrote {} in his book, then slept until {}.\n"
    path.write_text("".join(words.format(n, n * n % 97, n % 12) for n in range(150)))
    return path
