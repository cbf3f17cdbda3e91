"""Files and folders that are whole or absent, however the process that writes them ends.

A file is written under a temporary name, flushed to the disk, and renamed: a rename is atomic.
Locks keep two processes from writing into the same folder.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from common.kit.cli import UserError


def run_folder(out: str) -> Path:
    """Create the folder `out` if needed. Raises UserError if it can't be created or written to."""
    folder = Path(out).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} can't be created: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--out {out} can't be written to: give another folder")
    return folder


def visible(folder: Path) -> list[Path]:
    """All that a folder and its subfolders hold, sorted, without what is hidden: .venv/, say."""
    found = sorted(folder.rglob("*"))
    return [p for p in found if not any(s[0] == "." for s in p.relative_to(folder).parts)]


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but hidden files."""
    return all(path.name[0] == "." for path in folder.iterdir())


def check_json(option: str | None) -> None:
    """Raises UserError if the file given as --json can't be written."""
    file = Path(option or "numbers.json").expanduser()
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise UserError(f"--json {option} can't be written: give a file in a folder of yours")


def check_room(folder: Path, need: float, what: str) -> None:
    """Raises UserError if the disk lacks room for `need` bytes in `folder`, which need not exist
    yet. The files already in it count as room: they will be overwritten."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    ours = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(parent).free + ours
    if need > free:
        room = f"{folder} has room for {free / 1e9:.1f}: make room, or write elsewhere"
        raise UserError(f"{what} need about {need / 1e9:.1f} GB, and {room}")


def lock(folder: Path) -> FileLock | None:
    """Take an exclusive lock on the folder's file .lock. It lasts until .release() or the end of
    the process. None if another process holds it."""
    held = FileLock(folder / ".lock")
    with contextlib.suppress(Timeout):
        held.acquire(timeout=0)
    return held if held.is_locked else None


def locked(folder: Path) -> FileLock:
    """Lock a run's folder. Raises UserError if another process trains in it."""
    held = lock(folder)
    if held is None:
        raise UserError(f"another process trains in {folder}: give another --out")
    return held


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises UserError if there is none, OSError if the file can't be
    read."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError:  # not JSON, or not UTF-8
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return found


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    os.replace(partial, path)


@contextlib.contextmanager
def whole_folder(final: Path, hint: str = "make room") -> Iterator[Path]:
    """A folder to write into, which then replaces the folder `final`: whole, or not at all. If it
    can't be written, raises UserError and leaves nothing behind."""
    partial, old = (final.with_name(f".{final.name}{end}.partial") for end in ("", ".old"))
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (partial, old):  # of a process that was killed
            remove(leftover)
        partial.mkdir()
        yield partial
        for path in (*partial.iterdir(), partial):
            sync(path)
        if final.exists():
            os.replace(final, old)
        os.replace(partial, final)
        remove(old)
        sync(final.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{final} can't be written: {error}; {hint}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already, unless it could not be written


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def share(folder: Path) -> None:
    """Give the files in a folder the permissions that the umask allows. safetensors makes them
    readable only by their owner."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(data: bytes, expected: str, what: str, hint: str) -> bytes:
    """data, if its SHA-256 is the expected one. Raises UserError, which names it `what`."""
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        size = f"{len(data):,} bytes"
        raise UserError(f"{what} has sha256 {found[:12]}…, not {expected[:12]}… ({size}): {hint}")
    return data
