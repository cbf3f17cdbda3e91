"""Where Optuna keeps a search's trials: in a file in its folder, or in a shared database."""

import secrets
import sqlite3
from functools import partial
from json import JSONDecodeError
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from common.kit.cli import UserError
from common.kit.disk import write_text

# A storage that is damaged, unreachable or full; a journal whose last line was cut off.
STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError, JSONDecodeError)


def open_studies(storage: str | None, folder: Path, n_phases: int) -> list[optuna.Study]:
    """One study per phase, new or begun before.

    storage: a database URL for SQLAlchemy, or a journal file; by default, study.db in the search's
    folder. A storage may have many searches: the folder's study.txt says which one is its own.
    Raises UserError if it can't be used, and STORAGE_ERRORS.
    """
    file = folder / "study.txt"
    if storage and not file.exists():
        write_text(file, f"{folder.resolve().name} {secrets.token_hex(4)}, phase")
    name = file.read_text() if storage else "phase"
    try:
        if not storage:  # not by a URL, in which a folder's % or ? would mean something else
            connect = partial(sqlite3.connect, folder / "study.db", timeout=60)  # seconds
            opened = RDBStorage("sqlite://", engine_kwargs={"creator": connect})
        elif "://" in storage:
            opened = get_storage(storage)
        else:
            if Path(storage).is_file():
                with open(storage, "rb") as journal:  # a long search's journal is large
                    if (head := journal.read(99)) and b"op_code" not in head:
                        raise ValueError(f"{storage} is another kind of file")  # don't append to it
            opened = JournalStorage(JournalFileBackend(storage))
    except (ImportError, OSError, ValueError, ArgumentError) as error:
        reason = str(error.__cause__ or error).split("\n")[0]
        hint = "give a URL such as postgresql+psycopg://user@host/name, or a file"
        raise UserError(f"--storage can't be used: {reason}; {hint}") from None
    how = {"storage": opened, "load_if_exists": True}
    return [optuna.create_study(study_name=f"{name} {k + 1}", **how) for k in range(n_phases)]
