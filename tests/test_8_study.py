"""Stage 8's phases and its study, with nothing trained: nothing twice, nothing lost."""

import gc

import optuna
import pytest
from conftest import load_script
from optuna.trial import TrialState

from common.kit.cli import UserError
from common.search.phases import Phase, read_phases, total_steps
from common.search.storage import STORAGE_ERRORS
from common.search.study import Search
from common.search.trial import Trial

SPACE = {"lr": (1e-3, 1e-2, 1e-1), "n_layer": (1, 2, 4)}


def tell(search: Search, trial: Trial, loss: float | None, seconds: float = 1.0) -> None:
    """Note that a trial came to the end of its phase with this loss, or failed."""
    trial.step, trial.seconds = trial.phase.last, seconds
    trial.curve = [] if loss is None else [(trial.step, seconds, loss)]
    search.tell(trial, None if loss is not None else "loss nan at step 3")


def search_with(folder, phases: str, losses=(), sampler: str = "grid") -> Search:
    """A search whose first trials ended with these losses."""
    search = Search(folder, read_phases(phases), SPACE, sampler, 1)
    for loss in losses:
        tell(search, search.take(), loss)
    return search


def numbers(trials: list[Trial | None]) -> list[int | None]:
    return [trial and trial.number for trial in trials]


def test_the_arithmetic_of_the_phases():
    phases = read_phases("24x50,8x150,3x500")
    assert phases == [Phase(24, 0, 50), Phase(8, 50, 150), Phase(3, 150, 500)]
    assert total_steps(phases) == 24 * 50 + 8 * 100 + 3 * 350
    assert total_steps(read_phases("1316x500,320x1500,45x5000,8x10000")) == 1_175_500


@pytest.mark.parametrize(
    "text",
    ["", "24", "24x", "ax5", "8x50,8x100", "8x50,9x100", "8x50,4x50", "0x5", "5x-1", "4x5,,2x9"],
)
def test_phases_that_do_not_narrow_are_refused(text):
    with pytest.raises(UserError, match="--phases"):
        read_phases(text)


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_every_sampler_goes_through_the_phases(tmp_path, sampler):
    """The loss is 10 less the trial's number: the last three and then the last are promoted."""
    search = search_with(tmp_path, "9x5,3x9,1x20", sampler=sampler)
    seen = []
    while search.phase() is not None:
        trial = search.take()
        seen.append((trial.k, trial.number, trial.phase.first, trial.phase.last))
        tell(search, trial, 10.0 - trial.number)
        assert trial.folder == tmp_path / "trials" / f"{trial.number:04d}"
    assert seen == [(0, n, 0, 5) for n in range(9)] + [(1, n, 5, 9) for n in (8, 7, 6)] + [
        (2, 8, 9, 20)
    ]
    tried = {tuple(t.params.values()) for t in search.trials(0)}
    assert len(tried) == 9  # the whole space, nothing twice
    assert search.steps_done() == total_steps(search.phases)
    assert search.take() is None


@pytest.mark.parametrize("sampler, kind", [("grid", "GridSampler"), ("tpe", "TPESampler")])
def test_any_seed_and_the_sampler_that_was_asked_for(tmp_path, monkeypatch, sampler, kind):
    used, create_study = [], optuna.create_study

    def created(sampler=None, **how):
        used.append(type(sampler).__name__)
        return create_study(sampler=sampler, **how)

    monkeypatch.setattr(optuna, "create_study", created)
    search = Search(tmp_path, read_phases("9x5"), SPACE, sampler, 2**63 - 1)
    assert search.take().number == 0 and used[-1] == kind


def test_a_trial_is_one_processs_and_free_when_that_dies(tmp_path):
    one, two = search_with(tmp_path, "3x5,1x9"), search_with(tmp_path, "3x5,1x9")
    trials = [one.take(), two.take(), one.take()]
    assert numbers(trials) == [0, 1, 2]
    assert two.take() is None and two.phase() == 0  # all are taken: wait
    trials[1].lock.release()  # as the system does for a process that died
    again = one.take()
    assert (again.number, again.values) == (1, trials[1].values)
    for trial, loss in zip((trials[0], again, trials[2]), (3.0, 1.0, 2.0), strict=True):
        tell(one, trial, loss)
    assert two.take().number == 1


def test_failures_are_not_promoted_and_do_not_stop_the_others(tmp_path):
    search = search_with(tmp_path, "4x5,3x9", (None, 5.0, None, 4.0))
    assert numbers([search.take() for _ in range(3)]) == [3, 1, None]  # two are left of three
    assert search.trials(0)[0].state == TrialState.FAIL


def test_what_was_promoted_loses_its_checkpoint_when_it_falls_behind(tmp_path):
    search = search_with(tmp_path, "3x5,1x9")
    trials = [search.take() for _ in range(3)]
    for trial in trials:
        (trial.folder / "checkpoints").mkdir()
    left = []
    for trial, loss in zip(trials, (2.0, 3.0, 1.0), strict=True):
        tell(search, trial, loss)
        left.append([(t.folder / "checkpoints").exists() for t in trials])
    assert left == [[True, True, True], [True, False, True], [False, False, True]]


def test_only_the_last_value_of_a_trial_counts(tmp_path):
    """Trial 1 had 1.0 and ended at 7.0; trial 2 failed later: neither 1.0 nor 2.0 is the best."""
    search = search_with(tmp_path, "4x5,2x9", (5.0, 1.0, 2.0, 6.0))
    tell(search, search.take(), 7.0)
    tell(search, search.take(), None)
    ends = {number: trial.value for number, trial in search.latest().items()}
    assert ends == {0: 5.0, 1: 7.0, 2: None, 3: 6.0}


@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize(("k", "sampler"), [(0, "grid"), (0, "tpe"), (1, "grid")])
def test_a_kill_while_a_trial_is_taken_loses_none_of_it(tmp_path, monkeypatch, k, sampler, noted):
    """Before or after it is noted, sampled or promoted: no number twice, none left out."""
    losses = (4.0, 1.0, 3.0, 2.0) if k else (1.0,)
    search = search_with(tmp_path, "4x5,3x9", losses, sampler)
    add = search.studies[k].add_trial

    def killed(trial):
        if noted:
            add(trial)
        raise KeyboardInterrupt

    monkeypatch.setattr(search.studies[k], "add_trial", killed)
    with pytest.raises(KeyboardInterrupt):
        search.take()
    again = search_with(tmp_path, "4x5,3x9", sampler=sampler)
    trials = [again.take() for _ in range(4)]
    assert numbers(trials) == ([1, 3, 2, None] if k else [1, 2, 3, None])
    assert len({tuple(trial.values.items()) for trial in trials[:3]}) == 3
    assert all(trial.k == k for trial in trials[:3])


def test_a_sampler_that_finds_nothing_new_is_not_needed(tmp_path, monkeypatch):
    """The trials are then any of the rest, up to the whole space."""
    monkeypatch.setattr("common.search.phases.MAX_REPEATS", 0)
    search = search_with(tmp_path, "9x5", sampler="tpe")
    trials = [search.take() for _ in range(9)]
    assert len({tuple(trial.values.items()) for trial in trials}) == 9


def test_losses_are_reported_to_optuna_once(tmp_path, recwarn):
    search = search_with(tmp_path, "2x5,1x9")
    trial, log = search.take(), load_script(8).SearchLog(search)
    gc.collect()  # what other tests left open
    recwarn.clear()
    for trial.step, loss in ((2, 5.0), (4, 4.0), (4, 4.0)):  # the last again, after a resume
        log.val(trial, loss)
    assert search.trials(0)[0].intermediate_values == {2: 5.0, 4: 4.0} and not recwarn.list


# --storage


def test_a_journal_file_keeps_the_trials_of_searches_by_name(tmp_path):
    journal, folder = str(tmp_path / "journal.log"), tmp_path / "one"
    folder.mkdir()
    how = (read_phases("4x5,1x9"), SPACE, "grid", 1, journal)
    one = Search(folder, *how)
    first = one.take()
    two = Search(folder, *how)  # another process of the search
    tell(two, two.take(), 8.0)
    tell(one, first, 9.0)
    assert [trial.value for trial in one.complete(0)] == [8.0, 9.0]
    for loss in (7.0, 6.0, 5.0):
        tell(two, two.take(), loss)
    assert one.phase() is None and [trial.value for trial in one.complete(1)] == [5.0]
    assert not (folder / "study.db").exists()
    (tmp_path / "elsewhere/one").mkdir(parents=True)
    assert Search(tmp_path / "elsewhere/one", *how).take().number == 0  # a search of its own
    assert [trial.value for trial in Search(folder, *how).complete(1)] == [5.0]
    with open(journal, "a") as file:
        file.write('{"op_code": 4, "wor\n{}\n')  # the disk was full, and then no more
    with pytest.raises(STORAGE_ERRORS):
        one.trials(0)


def test_a_users_file_is_no_journal(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("dear diary\n")
    with pytest.raises(UserError, match="notes.txt is another kind of file"):
        Search(tmp_path, read_phases("4x5"), SPACE, "grid", 1, str(notes))
    assert notes.read_text() == "dear diary\n"


def test_an_empty_file_is_a_new_journal(tmp_path):
    (tmp_path / "new.log").touch()
    search = Search(tmp_path, read_phases("4x5"), SPACE, "grid", 1, str(tmp_path / "new.log"))
    assert search.trials(0) == [] and (tmp_path / "new.log").stat().st_size > 0


@pytest.mark.parametrize("storage, words", [
    ("gone/journal.log", "No such file"), ("nosql://host/name", "nosql"), ("://", "parse"),
])  # fmt: skip
def test_what_is_no_storage_is_said(tmp_path, storage, words):
    with pytest.raises(UserError, match=f"--storage can't be used: .*{words}"):
        Search(tmp_path, read_phases("4x5"), SPACE, "grid", 1, storage)
