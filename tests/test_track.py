"""--track: the numbers of stages 6 and 7 also go to a tracker, by its own package."""

import csv
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from helpers import TINY, one_thread, only_train


@pytest.fixture(autouse=True)
def short(monkeypatch, quick_peak):
    only_train(monkeypatch)
    with one_thread():
        yield


def numbers_of(folder: Path) -> dict[tuple[str, int], float]:
    """{(column, step): number} of a metrics.csv."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = set(rows[0]) - {"step"}
    return {
        (name, int(row["step"])): float(row[name]) for row in rows for name in names if row[name]
    }


def train(call, track: str, *options: str) -> None:
    code, _, stderr = call(7, "--out", "run", "--track", track, *options)
    assert code == 0, stderr


def train_and_resume(call, text_file, track: str) -> None:
    """The first 2 of 4 steps, and then the others."""
    train(call, track, *TINY, "--data", str(text_file), "--steps", "4", "--stop-at", "2")
    train(call, track, "--resume")


class Run:
    """What wandb and trackio share of their runs."""

    def __init__(self, how: dict):
        self.how, self.numbers, self.is_finished = how, {}, False

    def log(self, numbers: dict, step: int) -> None:
        self.numbers |= {(name, step): number for name, number in numbers.items()}

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def installed(monkeypatch):
    """installed(name, init) puts a package of that name in place of the real one."""

    def installed(name: str, init) -> None:
        package = ModuleType(name)
        package.__spec__ = ModuleSpec(name, None, origin="a file")
        package.init = init
        monkeypatch.setitem(sys.modules, name, package)

    return installed


@pytest.mark.parametrize("track", ["wandb", "trackio"])
def test_a_resumed_run_goes_on_in_its_trackers_run(call, text_file, installed, track):
    runs = []
    installed(track, lambda **how: runs.append(Run(how)) or runs[-1])
    train_and_resume(call, text_file, track)
    before, after = runs
    assert before.is_finished and after.is_finished
    expected = numbers_of(Path("run"))
    tracked = before.numbers | after.numbers  # and what was evaluated where the first part ended
    assert {key: tracked[key] for key in expected} == pytest.approx(expected)
    assert before.how["name"] == after.how["name"] and after.how["resume"] == "allow"
    assert before.how["name"].startswith("run-") and before.how["config"]["lr"] == 1e-2
    if track == "wandb":
        assert after.how["id"] == after.how["name"] and after.how["dir"] == Path("run")
    train(call, track, *TINY, "--data", str(text_file), "--steps", "1", "--restart")
    assert runs[2].how["name"] != after.how["name"]


def test_tensorboard_reads_what_metrics_csv_holds(call, text_file):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    train_and_resume(call, text_file, "tensorboard")
    (folder,) = Path("run/tensorboard").iterdir()
    events = accumulator.EventAccumulator(str(folder)).Reload()
    found = {
        (name, event.step): event.value
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
    }
    assert found == pytest.approx(numbers_of(Path("run")))


def test_stage_6_is_tracked_too(call, text_file, installed, monkeypatch):
    runs = []
    installed("wandb", lambda **how: runs.append(Run(how)) or runs[-1])
    monkeypatch.setattr("common.ladder.WARMUP_STEPS", 0)
    options = ("--model", "1x1x16", "--steps", "2", "--batch-size", "2", "--block-size", "8",
               "--total-batch-tokens", "32", "--warmup-steps", "1", "--compile", "no")  # fmt: skip
    code, _, stderr = call(6, *options, "--data", str(text_file), "--track", "wandb")
    assert code == 0, stderr
    assert runs[0].numbers == pytest.approx(numbers_of(Path("runs/6_hyparam")))


@pytest.mark.parametrize("stage", [6, 7])
def test_a_missing_package_is_named_before_any_work(refused, text_file, monkeypatch, stage):
    monkeypatch.setattr("common.kit.options.find_spec", lambda name: None)
    options = ("--data", str(text_file), "--track", "wandb")
    refused("--track is wandb: give no, or install that package first", stage, *options)
    assert not Path("runs").exists()


def test_a_folder_of_that_name_is_no_package(refused, text_file, monkeypatch):
    """wandb leaves a folder wandb/, which Python would import."""
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(Path.cwd())])
    Path("wandb").mkdir()
    refused("--track is wandb", 6, "--data", str(text_file), "--track", "wandb")


def test_a_tracker_that_refuses_is_quoted(refused, text_file, installed):
    def init(**_):
        raise ValueError("No API key configured.")

    installed("wandb", init)
    options = (*TINY, "--data", str(text_file), "--steps", "1", "--track", "wandb")
    refused("--track wandb: No API key configured; WANDB_MODE=offline needs", 7, *options)
