"""Documents from files on the Hub or here, one after the other, however many there are.

Text, JSON lines and Parquet, each plain or compressed with gzip or zstd. The library datasets reads
rows, streaming; text is read as it stands. Memory holds some documents at a time, never a file.
"""

import contextlib
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import fsspec
import pyarrow
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

from common.cli import UserError

# name → (its Parquet files on the Hub, about how many tokens they are)
HUB = {
    "fineweb-edu": ("datasets/HuggingFaceFW/fineweb-edu/sample/10BT/*.parquet", 9_950_000_000),
    "openwebtext": (
        "datasets/Skylion007/openwebtext@refs%2Fconvert%2Fparquet/plain_text/*train*/*.parquet",
        9_035_000_000,
    ),
}
KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
COMPRESSED = (".gz", ".zst")
MOST_CHARACTERS = 2**25  # of a document, or a line of text: a longer one is a mistake, or an attack
ROWS = 16  # documents at once
PIECE = 2**17  # characters of a text file at once


@dataclass(frozen=True)
class Source:
    """Files of one kind, in the order in which they are read. What is not known is 0."""

    files: tuple[str, ...]
    kind: str  # text, json or parquet
    field: str  # of a JSON line, or the column of Parquet
    bytes: int  # on the disk, as they are
    tokens: int  # about


@dataclass(frozen=True)
class Batch:
    """Texts that follow one another, and where to go on after them."""

    texts: list[str]
    begins: list[bool]  # which of them begin a document, and which go on with the one before
    state: dict  # for read(), of what JSON can hold


def find_source(name: str, field: str) -> Source:
    """A source by name or by path: a file, or all files of a folder and the folders in it.

    Raises UserError for a path that is not there, an empty folder, files of several kinds or of
    none, and a Hub that can't be reached.
    """
    if name in HUB:
        pattern, tokens = HUB[name]
        try:
            files = HfFileSystem().glob(pattern)
        except (OSError, HfHubHTTPError) as error:
            reason = f"{type(error).__name__}: {error}".split("\n")[0][:100]
            raise UserError(f"{name} can't be had from the Hub ({reason}): try again") from None
        if not files:
            raise UserError(f"{name} is no longer at {pattern} on the Hub: give files of your own")
        return Source(tuple(f"hf://{file}" for file in sorted(files)), "parquet", "text", 0, tokens)
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(f"{name} is none of {', '.join(HUB)}, and no file or folder: give one")
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = {file: _kind(file) for file in found if file.is_file()}
    known = {file: kind for file, kind in files.items() if kind}
    if not known:
        endings = f"{', '.join(KINDS)}, each also with {' or '.join(COMPRESSED)}"
        raise UserError(f"{name} has no file whose name ends as one of {endings}: give some")
    kinds = sorted(set(known.values()))
    if len(kinds) > 1:
        raise UserError(f"{name} has files of several kinds, {', '.join(kinds)}: give one kind")
    size = sum(file.stat().st_size for file in known)
    if not size:
        raise UserError(f"{name} is empty: give a file with some text")
    return Source(tuple(map(str, known)), kinds[0], field, size, 0)


def _kind(path: Path) -> str | None:
    name = path.with_suffix("") if path.suffix in COMPRESSED else path
    return KINDS.get(name.suffix)


def read(source: Source, state: dict | None = None) -> Iterator[Batch]:
    """The documents of all files in order, from the start or from a Batch's state on.

    Raises UserError, naming the file, for what can't be read: a damaged file, text that is no
    UTF-8, a field that is not there, a document or a line of more than MOST_CHARACTERS.
    """
    state = state or {"file": 0, "inside": None}
    for index in range(state["file"], len(source.files)):
        file, inside = source.files[index], state["inside"] if index == state["file"] else None
        work = _read_text if source.kind == "text" else _read_rows
        try:
            for texts, begins, place in work(source, file, inside):
                yield Batch(texts, begins, {"file": index, "inside": place})
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(f"{file} is no UTF-8 (byte {byte:#04x}): convert it") from None
        except (OSError, EOFError, ValueError, zlib.error, fsspec.compression.zstd.ZstdError,
                pyarrow.ArrowException, datasets.exceptions.DatasetsError) as error:  # fmt: skip
            reason = " ".join(str(error.__cause__ or error).split())[:150]
            raise UserError(f"{file} can't be read: {reason}; mend it, or leave it out") from None


def _read_text(source: Source, file: str, done: int | None) -> Iterator[tuple]:
    """A text file is one document, in pieces that together have the tokens of the whole; `done` of
    its characters came before."""
    done, rest, begins = done or 0, "", not done
    # Line breaks stay as they are.
    with fsspec.open(file, "rt", compression="infer", encoding="utf-8-sig", newline="") as opened:
        for start in range(0, done, PIECE):
            opened.read(min(PIECE, done - start))
        size = PIECE  # to be held, so that pieces do not depend on where reading began
        while more := opened.read(size - len(rest)):
            rest += more
            at = _safe_cut(rest)
            _check([rest[at:]], file)
            size += PIECE
            if at:
                done += at
                yield [rest[:at]], [begins], done
                rest, begins, size = rest[at:], False, PIECE
        if rest:
            yield [rest], [begins], done + len(rest)


def _read_rows(source: Source, file: str, state: dict | None) -> Iterator[tuple]:
    """JSON lines and Parquet: a document a row; `state` is of the library's stream of rows."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())  # for what datasets would keep
        options, data = {"columns": [source.field]} if source.kind == "parquet" else {}, file
        if source.kind == "parquet" and file.endswith(COMPRESSED):  # which is read from its end
            packed = stack.enter_context(fsspec.open(file, "rb", compression="infer"))
            data = f"{folder}/unpacked.parquet"
            with open(data, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what it raises says the same
        stream = datasets.load_dataset(
            source.kind, data_files=data, split="train", streaming=True, cache_dir=folder, **options
        ).with_format("arrow")
        if state:
            stream.load_state_dict(state)
        for table in stream.iter(ROWS):
            if source.field not in table.column_names:
                found = ", ".join(table.column_names)
                raise UserError(f"{file} has no {source.field}: give --field as one of {found}")
            rows = table[source.field].to_pylist()
            _check(rows, file)
            texts = [text for text in rows if text]  # None and "" are no documents
            yield texts, [True] * len(texts), stream.state_dict()


def _check(rows: list, file: str) -> None:
    others = set(map(type, rows)) - {str, type(None)}
    if others:
        raise UserError(f"{file} has {others.pop().__name__} where text should be: give --field")
    longest = max(map(len, filter(None, rows)), default=0)
    if longest > MOST_CHARACTERS:
        raise UserError(f"{file} has a line or document of {longest:,} characters or more, and "
                        f"{MOST_CHARACTERS:,} are the most: break it up")  # fmt: skip


# GPT-2's pattern begins a new match before white space that something else follows, whatever is
# before it: there a text can be cut, and its tokens stay.
CUT = re.compile(r"(?=[ \t\r\n]\S)")


def _safe_cut(text: str) -> int:
    """The last place where text can be cut without changing its tokens; 0 if there is none."""
    at = len(text) - 1
    while at > 0:
        at = max(text.rfind(space, 0, at) for space in " \t\r\n")
        if CUT.match(text, at):
            return at
    return 0


def without_long_gaps(text: str) -> list[str]:
    """The text, cut where half a million characters of white space end: GPT-2's pattern would
    overflow a stack on them."""
    if len(text) < 500_000 or not re.search(r"\s{500000}", text):
        return [text]
    return CUT.split(text)
