"""Stage 7: many settings briefly, the best of them longer; nothing twice, nothing lost."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS, load_script, started
from matplotlib.figure import Figure
from optuna.trial import TrialState
from safetensors.torch import load_file

from common import checkpoint, draw, searchplots
from common.kit.cli import UserError
from common.data import Batches, load_tokens
from common.evals import evaluate
from common.search.importance import Importance, importances
from common.init import init_weights, tie_weights
from common.model import GPT, GPTConfig
from common.optim import adamw, parameter_groups
from common.search.phases import SPACE as NAMES
from common.search.phases import Phase, read_phases, read_space, steps_in_all
from common.search.study import Claim, Search
from common.search.plots import front
from common.search.start import checkpoint_of, config_of
from common.speed import autocast, autocast_dtype, pad_vocab

CPU = torch.device("cpu")
# Settings of milliseconds a step.
SMALL = (
    "--phases", "5x4,2x8,1x12", "--lr", "1e-3", "1e-2", "--batch-size", "2", "4",
    "--block-size", "16", "--n-embd", "64", "--n-layer", "1", "2", "--eval-tokens", "100",
)  # fmt: skip
SPACE = {"lr": (1e-3, 1e-2, 1e-1), "n_layer": (1, 2, 4)}


@pytest.fixture(autouse=True)
def few_shuffles(request, monkeypatch):
    """What chance would show takes a second, and is asked for in two tests alone."""
    if "importances" not in request.node.name and "chance" not in request.node.name:
        monkeypatch.setattr("common.search.importance.SHUFFLES", 1)


# The phases


def test_the_arithmetic_of_the_phases():
    phases = read_phases("24x50,8x150,3x500")
    assert phases == [Phase(24, 50), Phase(8, 150), Phase(3, 500)]
    assert steps_in_all(phases) == 24 * 50 + 8 * 100 + 3 * 350
    assert steps_in_all(read_phases("1316x500,320x1500,45x5000,8x10000")) == 1_175_500


@pytest.mark.parametrize(
    "text",
    ["", "24", "24x", "ax5", "8x50,8x100", "8x50,9x100", "8x50,4x50", "0x5", "5x-1", "4x5,,2x9"],
)
def test_phases_that_do_not_narrow_are_refused(text):
    with pytest.raises(UserError, match="--phases"):
        read_phases(text)


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_every_sampler_goes_through_the_phases(tmp_path, sampler):
    """The loss is the setting's number: the first three and then the first must go on."""
    search = Search(tmp_path, read_phases("9x5,3x9,1x20"), SPACE, sampler, seed=1)
    seen = []
    while not search.finished:
        claim = search.claim()
        seen.append((claim.phase, claim.number))
        search.tell(claim, 10.0 - claim.number, seconds=1.0, curve=[(1, 1.0, 1.0)])
        assert claim.folder == tmp_path / "settings" / f"{claim.number:04d}"
    assert seen == [(0, n) for n in range(9)] + [(1, 8), (1, 7), (1, 6), (2, 8)]
    settings = [tuple(t.params.values()) for t in search.trials(0)]
    assert len(set(settings)) == 9  # the whole space, nothing twice
    assert search.steps_done() == steps_in_all(search.phases)
    assert search.best() == 2.0 and search.claim() is None


def test_a_claim_is_one_processs_and_free_when_it_dies(tmp_path):
    phases = read_phases("3x5,1x9")
    one, two = (Search(tmp_path, phases, SPACE, "grid", 1) for _ in range(2))
    claims = [one.claim(), two.claim(), one.claim()]
    assert [claim.number for claim in claims] == [0, 1, 2]
    assert two.claim() is None and not two.finished  # all are taken: wait
    claims[1].lock.close()  # as the system does for a process that died
    again = one.claim()
    assert (again.number, again.values) == (1, claims[1].values)
    for claim, loss in zip((claims[0], again, claims[2]), (3.0, 1.0, 2.0), strict=True):
        one.tell(claim, loss, seconds=1.0, curve=[])
    assert two.claim().number == 1


def test_failures_do_not_go_on_and_do_not_stop_the_others(tmp_path):
    search = Search(tmp_path, read_phases("4x5,3x9"), SPACE, "grid", 1)
    for loss in (None, 5.0, None, 4.0):
        search.tell(search.claim(), loss, reason="loss nan", seconds=1.0, curve=[])
    claims = [search.claim() for _ in range(3)]
    assert [claims[0].number, claims[1].number, claims[2]] == [3, 1, None]  # two are left of three
    assert search.trials(0)[0].state == TrialState.FAIL


def test_a_search_in_which_all_fails_says_why(tmp_path):
    search = Search(tmp_path, read_phases("2x5,1x9"), SPACE, "grid", 1)
    for _ in range(2):
        search.tell(search.claim(), None, reason="loss nan at step 3")
    assert search.finished and search.claim() is None
    with pytest.raises(UserError, match="failed, the first so: loss nan at step 3"):
        searchplots.report(search, "text")


def test_a_phase_in_which_all_fails_leaves_the_best_of_the_one_before(tmp_path, capsys):
    """Settings 0 and 1 go on and fail: the best is 2, the next of those that did not."""
    space = SPACE | {"n_embd": (64,), "batch_size": (2,), "block_size": (16,)}
    search = Search(tmp_path, read_phases("4x5,2x9,1x20"), space, "grid", 1)
    for loss in (1.0, 2.0, 3.0, 4.0):
        search.tell(search.claim(), loss, seconds=loss**2, curve=[(5, loss**2, loss)])
    for _ in range(2):
        search.tell(search.claim(), None, reason="loss nan", step=7, seconds=9.0, curve=[])
    assert search.finished and search.claim() is None
    searchplots.report(search, "text")
    stdout = capsys.readouterr().out
    table = stdout.split("the best, after 5 steps\n")[1].splitlines()
    assert [line.split()[0] for line in table[1:4]] == ["2", "3", "failed:"]
    assert "failed: 2 of 4, the first so: loss nan" in stdout
    best = tomllib.loads((tmp_path / "best.toml").read_text())
    assert best["lr"] == search.trials(0)[2].params["lr"] and best["data"] == "text"


def test_a_kill_while_a_setting_is_taken_loses_none_of_it(tmp_path):
    phases = read_phases("3x5,1x9")
    search = Search(tmp_path, phases, SPACE, "grid", 1)
    for loss in (3.0, 1.0, 2.0):
        search.tell(search.claim(), loss, seconds=1.0, curve=[])
    values = search.trials(0)[1].params
    with search.alone():
        search._promote(1)
        search.studies[1].ask()  # taken, none of its values noted yet: and a kill
    claim = Search(tmp_path, phases, SPACE, "grid", 1).claim()
    assert (claim.phase, claim.number, claim.values) == (1, 1, values)


def test_a_kill_within_a_draw_gives_no_number_twice(tmp_path, monkeypatch):
    """The sampler finds nothing new; a setting that is left is queued, and then a kill."""
    phases = read_phases("9x5")
    search = Search(tmp_path, phases, SPACE, "random", 1)
    first = search.claim()
    monkeypatch.setattr("common.search.sampling.TRIES", 0)
    with monkeypatch.context() as patch:
        patch.setattr(search.studies[0], "ask", lambda _: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            search.claim()
    again = Search(tmp_path, phases, SPACE, "random", 1)
    claims = [first, *(again.claim() for _ in range(8))]
    assert [claim.number for claim in claims] == list(range(9))
    assert len({tuple(claim.values.items()) for claim in claims}) == 9


def test_a_setting_that_ends_its_processes_has_failed(tmp_path):
    """As the system's killer does to a process that takes too much memory."""
    phases = read_phases("2x5,1x9")
    search = Search(tmp_path, phases, SPACE, "grid", 1)
    for _ in range(3):
        claim = search.claim()
        assert claim.number == 0
        claim.lock.close()
    claim = search.claim()
    assert claim.number == 1 and search.trials(0)[0].state == TrialState.FAIL
    assert search.trials(0)[0].user_attrs["reason"] == "3 processes died of it"
    for _ in range(5):  # this one comes as far as an evaluation each time
        search.lives(claim)
        claim.lock.close()
        claim = search.claim()
        assert claim.number == 1


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_any_seed_and_the_sampler_that_was_asked_for(tmp_path, sampler):
    search = Search(tmp_path, read_phases("9x5"), SPACE, sampler, 2**63 - 1)
    assert search.claim().number == 0
    kinds = {"grid": "GridSampler", "random": "RandomSampler", "tpe": "TPESampler"}
    found = draw._new_sampler(search.studies[0], SPACE, sampler, 2**63 - 1)
    assert type(found).__name__ == kinds[sampler]


# The script


def curves(folder: str) -> dict:
    """What a search found: {(phase, setting): (values, state, [(step, loss), …])}."""
    made_from = json.loads(Path(folder, "search.json").read_text())
    phases = read_phases(made_from["phases"])
    space = {name: made_from[name] for name in NAMES if name in made_from}
    search = Search(Path(folder), phases, space, made_from["sampler"], 0)
    return {
        (k, t.user_attrs["setting"]): (
            t.params, t.state, [(step, loss) for step, _, loss in t.user_attrs.get("curve", [])]
        )
        for k in range(len(phases)) for t in search.trials(k)
    }  # fmt: skip


def test_a_search_as_a_user_makes_it(call, text_file):
    code, stdout, stderr = call(7, *SMALL, "--data", str(text_file), "--out", "s")
    assert code == 0 and stderr == "", stderr
    assert "32 steps in 3 phases: 5x4,2x8,1x12" in stdout
    look = r"^phase \d/3  setting +\d+  step +\d+  loss ([\d.]+)  best ([\d.]+)  .* left$"
    looks = re.findall(look, stdout, re.M)
    assert len(looks) == 4 * 8 and all(float(best) <= float(loss) for loss, best in looks)
    assert max(map(len, stdout.splitlines())) <= 80
    found = curves("s")
    assert sorted(k for k, _ in found) == [0] * 5 + [1] * 2 + [2]
    losses = {n: curve[-1][1] for (k, n), (_, _, curve) in found.items() if k == 0}
    goes_on = sorted(losses, key=losses.get)[:2]
    assert sorted(n for k, n in found if k == 1) == sorted(goes_on)
    for (k, n), (values, state, curve) in found.items():
        assert state == TrialState.COMPLETE and curve[-1][0] == (4, 8, 12)[k]
        if k:  # the same setting, its curve a continuation
            assert values == found[k - 1, n][0]
            assert curve[: len(found[k - 1, n][2])] == found[k - 1, n][2]
    files = {p.name for p in Path("s").iterdir() if not p.name.startswith(".")}
    kept = {int(path.parent.name) for path in Path("s/settings").glob("*/checkpoints")}
    assert kept == {n for k, n in found if k == 2}  # the others go no further
    assert files == {"search.json", "study.db", "settings", "curves.png", "front.png",
                     "importance.png", "best.toml"}  # fmt: skip
    # the best is stage 6's to train, as it was here
    (winner,) = (n for k, n in found if k == 2)
    recipe = tomllib.loads(Path("s/best.toml").read_text())
    values = found[2, winner][0]
    row = [f"{values[name]:g}" for name in ("lr", "batch_size", "block_size", "n_embd", "n_layer")]
    table = stdout.split("the best, after 12 steps\n")[1].splitlines()
    assert table[0].split() == ["setting", "loss", "seconds", *values]
    assert table[1].split()[0] == str(winner) and table[1].split()[3:] == row
    assert table[2] == "importance, by 5 settings after 4 steps, for"
    assert len(table[3].split()) == 4 and "chance alone reaches" in table[5]
    assert recipe == {
        "model": f"{values['n_layer']}x1x64", "lr": values["lr"],
        "batch_size": values["batch_size"], "block_size": 16, "steps": 12, "warmup_steps": 10,
        "total_batch_tokens": 16 * values["batch_size"], "data": str(text_file), "seed": 1337,
    }  # fmt: skip
    code, stdout, stderr = call(6, "--recipe", "s/best.toml", "--compile", "no",
                                 "--steps", "2", "--out", "run")  # fmt: skip
    assert code == 0 and "recipe: s/best.toml" in stdout, stderr


def test_a_setting_is_trained_as_by_hand(call, text_file):
    """Twelve steps: warm-up, then a constant rate; the clip; what decays. The same bits."""
    one = ("--lr", "1e-2", "--batch-size", "2", "--n-layer", "1", "--phases", "1x12")
    assert call(7, *SMALL, *one, "--data", str(text_file), "--out", "s")[0] == 0
    model = pad_vocab(init_weights(tie_weights(GPT(GPTConfig(1, 1, 64, 16))), 1337))
    optimizer = adamw(parameter_groups(model, 0.1), 1.0)
    tokens = load_tokens(str(text_file))
    batches, norms = Batches(tokens.train, 2, 16, seed=1337), []
    for lr in [1e-3 * n for n in range(1, 11)] + [1e-2] * 2:
        for group in optimizer.param_groups:
            group["lr"] = lr
        with autocast(CPU, autocast_dtype(CPU)):
            loss = model(*next(batches))[1]
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
    assert max(norms) > 1
    weights = load_file("s/settings/0000/checkpoints/step_00000012/model.safetensors")
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(weights[name], parameter, rtol=0, atol=0)
    with autocast(CPU, autocast_dtype(CPU)):
        held_out = torch.from_numpy(tokens.held_out[:100].astype("int64"))
        assert curves("s")[0, 0][2][-1] == (12, evaluate(model, held_out, 16).loss)


def test_continuing_equals_training_in_one_go(call, text_file):
    """The winner of three phases, and the same setting alone: the same weights bit for bit."""
    data = ("--data", str(text_file), "--eval-tokens", "100")
    assert call(7, *SMALL, *data, "--out", "s")[0] == 0
    ((_, winner), (values, _, curve)) = max(curves("s").items())
    one = [word for name in ("lr", "batch_size", "block_size", "n_embd", "n_layer")
           for word in (f"--{name.replace('_', '-')}", str(values[name]))]  # fmt: skip
    assert call(7, *one, *data, "--phases", "1x12", "--out", "one")[0] == 0
    folders = [checkpoint.newest(Path(out, "settings", f"{n:04d}", "checkpoints"))
               for out, n in (("s", winner), ("one", 0))]  # fmt: skip
    weights = [load_file(folder / "model.safetensors") for folder in folders]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert dict(curves("one")[0, 0][2])[12] == dict(curve)[12]
    times = [seconds for _, seconds, _ in checkpoint.read(folders[0])["state"]["curve"]]
    assert len(times) == 12 and 0 < times[0] and times == sorted(set(times))  # of all three phases


def test_a_kill_within_a_phase_loses_little_of_it(text_file, monkeypatch):
    """A checkpoint is there before the phase ends, and going on from it is the same run."""
    script = load_script(7)
    script.SECONDS_TO_LOSE = 0
    tokens = load_tokens(str(text_file))
    values = {"lr": 1e-3, "batch_size": 2, "block_size": 16, "n_embd": 64, "n_layer": 1}

    def train(folder, look):
        claim = Claim(0, None, 0, values, Path(folder), None)
        with script.StopSignal() as stop:
            return script.train(claim, 0, 8, tokens, script.Options(), CPU, stop, look)

    def killed(step, loss):
        if step == 4:
            raise SystemError

    Path("one").mkdir(), Path("two").mkdir()
    whole = train("one", lambda step, loss: None)
    with pytest.raises(SystemError):
        train("two", killed)
    steps = []
    again = train("two", lambda step, loss: steps.append(step))
    assert steps == [4, 6, 8]  # step 3 was kept; looks are where they were
    assert [(a, c) for a, _, c in again["curve"]] == [(a, c) for a, _, c in whole["curve"]]


def test_a_checkpoint_that_is_of_no_use_is_not_taken(text_file, call):
    """Damaged, of another setting, or beyond the phase: the setting starts again."""
    one = ("--lr", "1e-2", "--batch-size", "2", "--n-layer", "1", "--phases", "1x4")
    assert call(7, *SMALL, *one, "--data", str(text_file), "--out", "s")[0] == 0
    values = curves("s")[0, 0][0]
    for how in ("good", "other", "beyond", "damaged"):
        shutil.copytree("s/settings/0000", how)
        if how == "damaged":
            Path(how, "checkpoints/step_00000004/model.safetensors").write_bytes(b"no")
        given = values | {"lr": 1e-3} if how == "other" else values
        claim = Claim(0, None, 0, given, Path(how), None)
        path = checkpoint_of(claim, 3 if how == "beyond" else 4)
        assert (path is not None) == Path(how, "checkpoints").exists() == (how == "good")


def test_a_killed_search_goes_on_to_the_same_end(call, text_file, tmp_path):
    options = (*SMALL, "--data", str(text_file))
    assert call(7, *options, "--out", "whole")[0] == 0
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS[7]), *options, "--out", "killed"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, env=env,
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("phase 1/3  setting   2  step     1"):
            process.kill()
    process.wait()
    before = curves("killed")
    assert [state for _, state, _ in before.values()].count(TrialState.RUNNING) == 1
    code, stdout, _ = call(7, *options, "--out", "killed")
    assert code == 0 and stdout.startswith("device: ")
    assert not re.search(r"^setting [01]:.*\nphase 1", stdout, re.M)  # they are not trained again
    assert curves("killed") == curves("whole")
    assert call(7, *options, "--out", "killed")[0] == 0  # and once more: the table again


def test_ctrl_c_keeps_the_setting_under_way(call, text_file, tmp_path):
    options = (*SMALL, "--phases", "2x4000,1x8000", "--data", str(text_file), "--out", "s")
    process = started(7, *options, cwd=tmp_path, until="setting 0")
    time.sleep(1)  # it is training
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in stderr
    path = checkpoint.newest(tmp_path / "s/settings/0000/checkpoints")
    assert 0 < checkpoint.read(path)["state"]["step"] < 4000


def test_a_signal_before_the_first_step_and_while_waiting(call, text_file, monkeypatch):
    """A setting claimed, nothing trained: the same command goes on. A waiting one stops, too."""
    options = (*SMALL, "--phases", "2x4,1x8", "--data", str(text_file), "--out", "s")
    script_step = checkpoint.newest

    def signalled(folder):
        os.kill(os.getpid(), signal.SIGTERM)
        return script_step(folder)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "newest", signalled)
        assert call(7, *options)[0] == 130
    assert call(7, *options)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(Search, "finished", False)
        patch.setattr(Search, "claim", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        assert call(7, *options)[0] == 130


def test_a_promotion_that_was_cut_off_is_finished(tmp_path, monkeypatch):
    search = Search(tmp_path, read_phases("4x5,3x9"), SPACE, "grid", 1)
    for loss in (4.0, 1.0, 3.0, 2.0):
        search.tell(search.claim(), loss, seconds=1.0, curve=[])
    enqueue, calls = search.studies[1].enqueue_trial, []

    def killed(*args):
        calls.append(enqueue(*args))
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(search.studies[1], "enqueue_trial", killed)
    with pytest.raises(KeyboardInterrupt):
        search.claim()
    again = Search(tmp_path, read_phases("4x5,3x9"), SPACE, "grid", 1)
    claims = [again.claim() for _ in range(4)]
    assert [claim and claim.number for claim in claims] == [1, 3, 2, None]


def test_a_draw_that_was_cut_off_is_no_setting(tmp_path):
    search = Search(tmp_path, read_phases("9x5"), SPACE, "random", 1)
    search.studies[0].ask()  # and a kill
    numbers = []
    while not search.finished:
        claim = search.claim()
        numbers.append(claim.number)
        search.tell(claim, 1.0, seconds=1.0, curve=[])
    assert numbers == list(range(9))


def test_two_processes_share_the_work(text_file, tmp_path):
    options = (*SMALL, "--phases", "4x12,1x20", "--data", str(text_file), "--out", "s")
    command = [sys.executable, str(SCRIPTS[7]), *options]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pair = [
        subprocess.Popen(command, cwd=tmp_path, text=True, env=env, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE) for _ in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    looks = [
        re.findall(r"^phase (\d)/2  setting +(\d+)  step +(\d+)", out, re.M) for out, _ in outputs
    ]
    assert looks[0] and looks[1] and not set(looks[0]) & set(looks[1])  # both, and none twice
    found = curves(str(tmp_path / "s"))
    assert len(found) == 5 and all(state == TrialState.COMPLETE for _, state, _ in found.values())


def test_a_diverging_setting_fails_and_the_study_goes_on(call, text_file):
    options = (*SMALL, "--lr", "1e-3", "1e30", "--phases", "4x4,1x8", "--batch-size", "2")
    code, stdout, _ = call(7, *options, "--data", str(text_file), "--out", "s")
    assert code == 0 and re.search(r"setting \d failed: .*loss nan at step \d", stdout)
    states = {values["lr"]: state for values, state, _ in curves("s").values()}
    assert states == {1e-3: TrialState.COMPLETE, 1e30: TrialState.FAIL}


def test_a_setting_that_does_not_fit_fails_and_the_study_goes_on(call, text_file, monkeypatch):
    forward = GPT.forward

    def full(self, idx, targets=None):
        if self.config.n_layer == 2:
            raise torch.OutOfMemoryError
        return forward(self, idx, targets)

    monkeypatch.setattr(GPT, "forward", full)
    options = (*SMALL, "--phases", "4x4,1x8", "--batch-size", "2", "--data", str(text_file))
    code, stdout, _ = call(7, *options, "--out", "s")
    assert code == 0 and stdout.count("failed: the memory is full") == 2
    assert {v["n_layer"] for v, state, _ in curves("s").values() if state == TrialState.FAIL} == {2}
    monkeypatch.setattr(GPT, "forward", lambda *_: exec("raise RuntimeError('shapes differ')"))
    with pytest.raises(RuntimeError, match="shapes differ"):  # ours, not the memory's
        call(7, *options, "--out", "t")


# The pictures


class Trial:
    def __init__(self, value, seconds, **params):
        self.value, self.params = value, params
        curve = [(10, seconds / 2, value + 1), (20, seconds, value)]
        self.user_attrs = {"seconds": seconds, "curve": curve}


def test_the_front_is_of_those_that_none_beats():
    trials = [Trial(*point) for point in ((5, 1), (4, 2), (4.5, 3), (3, 9), (3.5, 9), (6, 1))]
    assert [(t.value, t.user_attrs["seconds"]) for t in front(trials)] == [(5, 1), (4, 2), (3, 9)]


def test_the_pictures_hold_what_they_claim(tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(
        searchplots, "save_picture", lambda figure, path: kept.update({path: figure})
    )
    trials = [Trial(3 + n, 1.0 + n, lr=lr, n_layer=1) for n, lr in enumerate((1e-3, 1e-2, 1e-3))]
    searchplots.draw_curves("curves", trials, {"lr": (1e-3, 1e-2), "n_layer": (1,)})
    figure: Figure = kept["curves"]
    above, below = figure.axes  # n_layer does not vary
    assert above.get_legend().get_title().get_text() == "lr"
    for axes, x in ((above, 0), (below, 1)):
        lines = [line for line in axes.lines if len(line.get_xdata())]
        for trial, line in zip(trials, lines, strict=True):
            assert list(line.get_xdata()) == [point[x] for point in trial.user_attrs["curve"]]
            assert list(line.get_ydata()) == [point[2] for point in trial.user_attrs["curve"]]
        colors = [str(line.get_color()) for line in lines]
        assert colors[0] == colors[2] != colors[1]  # coloured by the learning rate
    assert list(above.get_xticks()) == [20]
    failed = Trial(0, 9.0, lr=1e-2, n_layer=1)
    failed.value, failed.user_attrs = None, {"curve": [], "step": 7, "seconds": 9.0}
    searchplots.draw_curves("curves", [*trials, failed], {"lr": (1e-3, 1e-2), "n_layer": (1,)})
    for axes, x in zip(kept["curves"].axes, (7, 9.0), strict=True):
        (cross,) = (line for line in axes.lines if line.get_marker() == "x")
        assert list(cross.get_xdata()) == [x] and str(cross.get_color()) == colors[1]
    trials = [Trial(5, 1.0), Trial(3, 4.0), Trial(4, 8.0)]
    searchplots.draw_front("front", {"all": trials})
    dots, line = kept["front"].axes[0].lines
    assert dots.get_xydata().tolist() == [[1, 5], [4, 3], [8, 4]]
    assert line.get_xydata().tolist() == [[1, 5], [4, 3]] and "steps" in line.get_drawstyle()
    found = {"loss": Importance({"lr": 0.8, "n_layer": 0.2}, 0.5),
             "loss and time": Importance({"lr": 0.3, "n_layer": 0.7}, 0.6)}  # fmt: skip
    searchplots.draw_importances("importance", found, "after 5 steps")
    axes = kept["importance"].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.8, 0.2, 0.3, 0.7]
    assert [line.get_xdata()[0] for line in axes.lines] == [0.5, 0.6]


def test_the_importances_find_what_matters(tmp_path):
    """The loss depends on the learning rate alone, the time on the layers alone."""
    search = Search(tmp_path, read_phases("9x5"), SPACE, "grid", 1)
    while not search.finished:
        claim = search.claim()
        lr, layers = claim.values["lr"], claim.values["n_layer"]
        loss = 5.0 + abs(math.log10(lr) + 2) + 0.01 * layers
        search.tell(claim, loss, seconds=10.0 * layers + lr, curve=[])
    found = importances(search.trials(0), list(SPACE))
    loss, both = found["loss"], found["loss and time"]
    assert loss.shares["lr"] > 0.9 and sum(loss.shares.values()) == pytest.approx(1)
    assert both.shares["n_layer"] > 0.3
    assert 0.5 < loss.chance < 1 and 0.5 < both.chance < 1  # the larger of two shares


def test_a_share_of_nothing_is_not_above_chance(tmp_path):
    """Where the losses are drawn with no regard to the settings, nothing matters."""
    search = Search(tmp_path, read_phases("9x5"), SPACE, "grid", 1)
    for loss in (5.3, 5.1, 5.8, 5.2, 5.9, 5.5, 5.6, 5.4, 5.7):
        search.tell(search.claim(), loss, seconds=1.0 + loss, curve=[])
    found = importances(search.trials(0), list(SPACE))["loss"]
    assert max(found.shares.values()) < found.chance


def test_what_failed_counts_as_the_worst(tmp_path):
    """All of the highest rate fail, and nothing else makes any difference to speak of."""
    search = Search(tmp_path, read_phases("9x5"), SPACE, "grid", 1)
    for k in range(9):
        claim = search.claim()
        loss = None if claim.values["lr"] == 1e-1 else 5.0 + 0.01 * k
        facts = {"reason": "nan"} if loss is None else {"seconds": 1.0 + k % 3, "curve": []}
        search.tell(claim, loss, **facts)
    without = importances(search.complete(0), list(SPACE))["loss"].shares
    assert importances(search.trials(0), list(SPACE))["loss"].shares["lr"] > without["lr"]


# What is refused


def test_bad_input(refused, text_file, call):
    data = ("--data", str(text_file))
    refused("--phases 5", 7, *data, "--phases", "5")
    refused("--lr is -1", 7, *data, "--lr", "1e-3", "-1")
    refused("--n-layer is 0", 7, *data, "--n-layer", "0")
    refused("--batch-size is 0", 7, *data, "--batch-size", "4", "0")
    refused("a width of 96", 7, *data, "--n-embd", "96")
    refused("a width of 64 and 5 heads", 7, *data, "--n-embd", "64", "--n-head", "5")
    refused("the space has 8: widen it", 7, *SMALL, *data, "--phases", "9x4")
    for text in ("lr = [1e-3", "width = [3]", "lr = ['x']", "lr = 5"):
        Path("space.toml").write_text(text)
        refused("--space space.toml", 7, *data, "--space", "space.toml")
    refused("--space gone", 7, *data, "--space", "gone")
    assert not Path("runs").exists()
    Path("mine").mkdir()
    Path("mine/letter").write_text("mine")
    refused("holds something else", 7, *SMALL, *data, "--out", "mine")
    assert [p.name for p in Path("mine").iterdir()] == ["letter"]
    Path("space.toml").write_text("lr = [1e-3, 1e-2]\nn_layer = [1]\n")
    small = (*SMALL, *data, "--phases", "2x2", "--out", "s")
    assert call(7, *small, "--space", "space.toml")[0] == 0
    assert {values["lr"] for values, _, _ in curves("s").values()} <= {1e-3, 1e-2}
    refused("has n_layer [1], not [1, 2]", 7, *small)
    refused("has phases 2x2, not 2x3", 7, *small, "--space", "space.toml", "--phases", "2x3")
    Path("other.txt").write_text("One text is not another. " * 500)
    refused("has text", 7, *small, "--space", "space.toml", "--data", "other.txt")
    Path("s/search.json").write_text("{")
    refused("s/search.json is damaged", 7, *small, "--space", "space.toml")
    refused("--eval-tokens is 0", 7, *SMALL, *data, "--eval-tokens", "0")
    refused("fewer than a batch", 7, *SMALL, *data, "--block-size", "16", "1000")
    for text, words in {"lr = [-1e-3]": "--lr is -0.001", "batch_size = [0]": "--batch-size is 0",
                        "lr = []": "lr", "seed = [5]": "it has seed",
                        "n_layer = '12'": "n_layer is no list of numbers",
                        "lr = ['--help']": "lr is no list of numbers"}.items():  # fmt: skip
        Path("space.toml").write_text(text)
        refused(words, 7, *data, "--space", "space.toml", "--out", "new")


def test_the_default_space_has_what_the_docstring_says():
    script = load_script(7)
    options = script.Options()
    space = read_space(options)
    assert min(space["lr"]) == 1e-5 and max(space["lr"]) == 1e-1
    assert math.prod(map(len, space.values())) >= read_phases(options.phases)[0].settings
    assert "n_head" not in space
    assert config_of({"n_embd": 128, "n_layer": 1, "block_size": 32}).n_head == 2
