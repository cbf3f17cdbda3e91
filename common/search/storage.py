"""Where Optuna keeps a search's trials: in a file in its folder, or in a shared database."""

import secrets
from json import JSONDecodeError
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from common.kit.cli import UserError
from common.kit.disk import write_text

# A storage that is damaged, unreachable or full; a journal whose last line was cut off.
STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError, JSONDecodeError)


def open_studies(storage: str | None, folder: Path, n_phases: int) -> list[optuna.Study]:
    """One study per phase, new if the folder has no trials/; if it has, the storage must have them.

    storage: a database URL for SQLAlchemy, or a journal file; by default, study.db in the search's
    folder. A storage may have many searches: the folder's study.txt says which one is its own.
    Raises UserError if it is no storage, or not this search's, and STORAGE_ERRORS.
    """
    file, begun = folder / "study.txt", (folder / "trials").exists()
    if begun and file.exists() != bool(storage):
        how = "with" if file.exists() else "without"
        raise UserError(f"the search in {folder} was begun {how} --storage: resume it the same way")
    if storage and not file.exists():
        write_text(file, f"{folder.resolve().name} {secrets.token_hex(4)}, phase")
    name = file.read_text() if storage else "phase"
    names = [f"{name} {k + 1}" for k in range(n_phases)]
    try:
        opened = _open(storage) if storage else get_storage(f"sqlite:///{folder / 'study.db'}")
        if begun:
            return [optuna.load_study(study_name=name, storage=opened) for name in names]
        new = {"storage": opened, "load_if_exists": True}
        studies = [optuna.create_study(study_name=name, **new) for name in names]
    except (KeyError, RuntimeError) as error:  # no such study; of another version of Optuna
        if storage and isinstance(error, KeyError):
            hint = f"give the one that {folder} was begun with"
            raise UserError(f"--storage has no search '{name} 1': {hint}") from None
        raise StorageInternalError from error
    (folder / "trials").mkdir()
    return studies


def _open(storage: str) -> BaseStorage:
    try:
        if "://" in storage:
            return get_storage(storage)
        if Path(storage).exists():
            with open(storage, "rb") as file:
                begin = file.read(99)
            if begin and b"op_code" not in begin:
                raise ValueError(f"{storage} is another kind of file")  # so don't append to it
        return JournalStorage(JournalFileBackend(storage))
    except (ImportError, OSError, ValueError, ArgumentError) as error:
        reason = str(error.__cause__ or error).split("\n")[0]
        hint = "give a URL such as postgresql+psycopg://user@host/name, or a file"
        raise UserError(f"--storage can't be used: {reason}; {hint}") from None
