"""What stage 8 says and plots of a search: tables, importances, pictures, best.toml."""

import math
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from test_8_study import SPACE, search_with, tell

from common.kit.cli import UserError
from common.search.importance import Importance, importances, plot_importances
from common.search.phases import read_phases
from common.search.report import plot_curves, report
from common.search.study import Search

OPTIONS = SimpleNamespace(eval_tokens=100, data="text")
REST = {"n_embd": (64,), "batch_size": (2,), "block_size": (16,)}


class Trial:
    def __init__(self, value, seconds, **params):
        self.value, self.params = value, params
        curve = [(10, seconds / 2, value + 1), (20, seconds, value)]
        self.user_attrs = {"seconds": seconds, "curve": curve, "step": 20}


def test_a_search_in_which_all_fails_says_why(tmp_path):
    search = search_with(tmp_path, "2x5,1x9", (None, None))
    assert search.phase() is None and search.take() is None
    with pytest.raises(UserError, match="failed, the first with: loss nan at step 3"):
        report(search, OPTIONS, 100)


def test_a_phase_in_which_all_fails_leaves_the_best_of_the_one_before(
    tmp_path, capsys, monkeypatch
):
    """Trials 0 and 1 are promoted and fail: the best is 2, the next of those that did not."""
    monkeypatch.setattr("common.search.importance.SHUFFLES", 1)
    for name in ("plot_curves", "plot_importances"):
        monkeypatch.setattr(f"common.search.report.{name}", lambda *_: None)
    space = SPACE | REST
    search = Search(tmp_path, read_phases("4x5,2x9,1x20"), space, "grid", 1)
    for loss in (1.0, 2.0, 3.0, 4.0):
        tell(search, search.take(), loss, seconds=loss**2)
    for _ in range(2):
        tell(search, search.take(), None)
    assert search.phase() is None and search.take() is None
    report(search, OPTIONS, 100)
    stdout = capsys.readouterr().out
    table = stdout.split("the best, after 5 steps\n")[1].splitlines()
    assert [line.split()[0] for line in table[1:3]] == ["2", "3"]
    assert "failed: 2 of 4, the first with: loss nan" in stdout
    best = tomllib.loads((tmp_path / "best.toml").read_text())
    assert best["lr"] == search.trials(0)[2].params["lr"] and best["data"] == "text"


def test_the_report_tells_edges_medians_and_which_tokens(capsys, monkeypatch):
    """The loss falls with the learning rate: the largest is the best, and more might be better."""
    monkeypatch.setattr("common.search.importance.SHUFFLES", 1)
    for name in ("plot_curves", "plot_importances"):
        monkeypatch.setattr(f"common.search.report.{name}", lambda *_: None)
    space = SPACE | REST
    Path("s").mkdir()
    search = Search(Path("s"), read_phases("9x5"), space, "grid", 1)
    for _ in range(9):
        trial = search.take()
        loss = 5.0 - 10 * trial.values["lr"] + abs(trial.values["n_layer"] - 2) / 10
        tell(search, trial, loss, seconds=trial.values["n_layer"])
    report(search, OPTIONS, 1000)
    stdout = capsys.readouterr().out
    assert "at the edge of the space, so widen it: lr 0.1 is the largest tried\n" in stdout
    assert "  lr: 5.09 with 0.001, 5.00 with 0.01, 4.10 with 0.1\n" in stdout
    assert "loss: over the first 100 of 1,000 validation tokens" in stdout
    assert max(map(len, stdout.splitlines())) <= 80


def test_a_trial_that_failed_at_once_is_plotted_too(tmp_path, recwarn):
    """Its model does not fit: it has no step, no time and no curve."""
    space = {"lr": (1e-3, 1e-2), "n_layer": (1,)} | REST
    search = Search(tmp_path, read_phases("2x5"), space, "grid", 1)
    search.tell(search.take(), "out of memory")
    tell(search, search.take(), 5.0)
    report(search, OPTIONS, 100)
    found = [str(warning.message) for warning in recwarn.list]
    assert (tmp_path / "lr.png").exists() and found == []


@pytest.fixture
def figures(monkeypatch) -> dict[str, Figure]:
    """The pictures that a test makes, by path."""
    made = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: made.update({path: figure}))
    return made


def test_the_curves_hold_what_they_claim(figures):
    trials = [Trial(3 + n, 1.0 + n, lr=lr, n_layer=1) for n, lr in enumerate((1e-3, 1e-2, 1e-3))]
    space = {"lr": (1e-3, 1e-2), "n_layer": (1, 2)}
    failed = Trial(0, 9.0, lr=1e-2, n_layer=1)
    failed.value, failed.user_attrs = None, {"curve": [], "step": 7, "seconds": 9.0}
    plot_curves("curves", [*trials, failed], space, ["n_layer", "lr"])
    plot_curves("lr", [*trials, failed], space, ["lr"])
    (layers, panel), (alone,) = figures["curves"].axes, figures["lr"].axes
    assert [text.get_text() for text in layers.get_legend().get_texts()] == ["1"]  # 2: not tried
    for axes in (panel, alone):
        assert axes.get_legend().get_title().get_text() == "lr"
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0.001", "0.01"]
        lines = [line for line in axes.lines if len(line.get_xdata()) and line.get_marker() == "."]
        for trial, line in zip(trials, lines, strict=True):
            curve = [(step, loss) for step, _, loss in trial.user_attrs["curve"]]
            assert [tuple(point) for point in line.get_xydata()] == curve
        colors = [str(line.get_color()) for line in lines]
        assert colors[0] == colors[2] != colors[1]  # coloured by the learning rate
        assert axes.get_xscale() == axes.get_yscale() == "log"
        assert list(axes.get_xticks()) == [20]
        (cross,) = (line for line in axes.lines if line.get_marker() == "x")
        assert list(cross.get_xdata()) == [7] and str(cross.get_color()) == colors[1]


def test_the_importances_are_plotted_as_they_are(figures):
    found = {"loss": Importance({"lr": 0.8, "n_layer": 0.2}, 0.5),
             "loss and time": Importance({"lr": 0.3, "n_layer": 0.7}, 0.6)}  # fmt: skip
    plot_importances("importance", found, "after 5 steps")
    axes = figures["importance"].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.8, 0.2, 0.3, 0.7]
    assert [bar.get_alpha() == 1 for bar in axes.patches] == [True, False, False, True]
    assert {handle.get_alpha() for handle in axes.get_legend().legend_handles} == {1}
    assert [line.get_xdata()[0] for line in axes.lines] == [0.5, 0.6]
    assert "dashed: what chance alone reaches" in axes.get_title()


def test_the_importances_find_what_matters(tmp_path, monkeypatch):
    """The loss depends on the learning rate alone, the time on the layers alone."""
    monkeypatch.setattr("common.search.importance.SHUFFLES", 5)  # in place of 19: they take seconds
    search = search_with(tmp_path, "9x5")
    while search.phase() is not None:
        trial = search.take()
        lr, layers = trial.values["lr"], trial.values["n_layer"]
        loss = 5.0 + abs(math.log10(lr) + 2) + 0.01 * layers
        tell(search, trial, loss, seconds=10.0 * layers + lr)
    found = importances(search.trials(0), list(SPACE))
    loss, both = found["loss"], found["loss and time"]
    assert loss.shares["lr"] > 0.9 and sum(loss.shares.values()) == pytest.approx(1)
    assert both.shares["n_layer"] > 0.3
    assert 0.5 < loss.chance < 1 and 0.5 < both.chance < 1  # the larger of two shares


def test_a_share_of_nothing_is_not_above_chance(tmp_path, monkeypatch):
    """Where the losses have nothing to do with the values, nothing matters."""
    monkeypatch.setattr("common.search.importance.SHUFFLES", 5)
    search = search_with(tmp_path, "9x5")
    for loss in (5.3, 5.1, 5.8, 5.2, 5.9, 5.5, 5.6, 5.4, 5.7):
        tell(search, search.take(), loss, seconds=1.0 + loss)
    found = importances(search.trials(0), list(SPACE))["loss"]
    assert max(found.shares.values()) < found.chance


def test_what_failed_counts_as_the_worst(tmp_path, monkeypatch):
    """All of the highest learning rate fail; nothing else makes a difference to speak of."""
    monkeypatch.setattr("common.search.importance.SHUFFLES", 1)
    search = search_with(tmp_path, "9x5")
    for k in range(9):
        trial = search.take()
        loss = None if trial.values["lr"] == 1e-1 else 5.0 + 0.01 * k
        tell(search, trial, loss, seconds=1.0 + k % 3)
    without = importances(search.complete(0), list(SPACE))["loss"].shares
    assert importances(search.trials(0), list(SPACE))["loss"].shares["lr"] > without["lr"]
