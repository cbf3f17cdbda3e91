"""Where Optuna keeps a search's trials: a file in its folder, or what machines share."""

from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from common.kit.cli import UserError

STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError)  # it is damaged, unreachable, or full


def open_studies(storage: str | None, folder: Path, n_phases: int) -> list[optuna.Study]:
    """A study a phase, new if the folder has no trials/. Later, a storage without them is damaged.

    storage: a database's URL, as SQLAlchemy reads it, or a journal file; by default, study.db in
    the search's folder. Raises UserError for one that is no storage, or that has another search of
    this name, and STORAGE_ERRORS.
    """
    name = f"{folder.resolve().name}, phase" if storage else "phase"
    names, begun = [f"{name} {k + 1}" for k in range(n_phases)], folder / "trials"
    try:
        opened = _open(storage) if storage else get_storage(f"sqlite:///{folder / 'study.db'}")
        if begun.exists():
            return [optuna.load_study(study_name=name, storage=opened) for name in names]
        how = {"storage": opened, "load_if_exists": True}
        studies = [optuna.create_study(study_name=name, **how) for name in names]
    except (KeyError, RuntimeError) as error:  # no such study; of another version of Optuna
        raise StorageInternalError from error
    if studies[0].get_trials(deepcopy=False) and storage:
        raise UserError(f"--storage has a search called {folder.resolve().name}, and {folder} has "
                        "none: give another --out")  # fmt: skip
    begun.mkdir()
    return studies


def _open(storage: str) -> BaseStorage:
    try:
        if "://" not in storage:
            return JournalStorage(JournalFileBackend(storage))
        return get_storage(storage)
    except (ImportError, OSError, ValueError, ArgumentError) as error:
        reason = str(error.__cause__ or error).split("\n")[0]
        raise UserError(f"--storage can't be used: {reason}; give a URL such as "
                        "postgresql://user@host/name, or a file") from None  # fmt: skip
