"""Documents from files on the Hub or here, one after the other, however many there are.

fsspec opens the files, here or on the Hub, and unpacks them; pyarrow reads Parquet. Memory holds
some documents at a time, never a file.
"""

import itertools
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pyarrow.parquet

from common.cli import UserError
from common.sources import COMPRESSED, HUB_ERRORS, Source

# Of a document, or of text without a space: more is a mistake, or an attack.
MOST_CHARACTERS = 2**23
ROWS = 16  # documents at once
PIECE = 2**17  # characters of a text file at once


@dataclass(frozen=True)
class Batch:
    """Texts that follow one another, and where to go on after them."""

    texts: list[str]
    begins: list[bool]  # which of them begin a document, and which go on with the one before
    empty: int  # documents without text, which are passed over
    read: int  # characters of the file so far
    state: dict  # for read(), of what JSON can hold


def read(source: Source, state: dict | None = None) -> Iterator[Batch]:
    """The documents of all files in order, from the start or from a Batch's state on.

    Raises UserError, naming the file, for what can't be read: a damaged file, text that is no
    UTF-8, a field that is not there, a document of more than MOST_CHARACTERS.
    """
    state = state or {"file": 0, "inside": None}
    work = {"text": _read_text, "json": _read_json, "parquet": _read_parquet}[source.kind]
    for index in range(state["file"], len(source.files)):
        file, inside = source.files[index], state["inside"] if index == state["file"] else None
        hint = "the same command goes on" if file.startswith("hf:") else "mend it, or leave it out"
        try:
            with tempfile.TemporaryDirectory() as folder:
                data = file
                if not file.startswith("hf:"):  # a name that is no pattern and no address
                    data = f"{folder}/source" + "".join(Path(file).suffixes[-2:]).lower()
                    os.symlink(os.path.abspath(file), data)
                for texts, begins, empty, done, place in work(data, source.field, inside, folder):
                    for text in texts:
                        if len(text) > MOST_CHARACTERS:
                            found = f"{len(text):,} characters in a document"
                            most = f"{MOST_CHARACTERS:,} are the most"
                            raise UserError(f"{file} has {found}, and {most}: break it up")
                    yield Batch(texts, begins, empty, done, {"file": index, "inside": place})
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(f"{file} is no UTF-8 (byte {byte:#04x}): convert it") from None
        except (*HUB_ERRORS, EOFError, ValueError, zlib.error, pyarrow.ArrowException,
                fsspec.compression.zstd.ZstdError) as error:  # fmt: skip
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"{file} can't be read: {reason}; {hint}") from None


def _open(data: str):
    """As text, its line breaks as they are."""
    return fsspec.open(data, "rt", compression="infer", encoding="utf-8-sig", newline="")


def _read_text(data: str, field: str, done: int | None, folder: str) -> Iterator[tuple]:
    """A text file is one document, in pieces that together have the tokens of the whole; `done` of
    its characters came before."""
    done, rest, begins = done or 0, "", not done
    with _open(data) as opened:
        for start in range(0, done, PIECE):
            opened.read(min(PIECE, done - start))
        size = PIECE  # to be held, so that pieces do not depend on where reading began
        while more := opened.read(size - len(rest)):
            rest += more
            at = _safe_cut(rest)
            size += PIECE
            if at or len(rest) > MOST_CHARACTERS:  # too long, which read() will say
                at = at or len(rest)
                done += at
                yield [rest[:at]], [begins], 0, done, done
                rest, begins, size = rest[at:], False, PIECE
        if rest:
            yield [rest], [begins], 0, done + len(rest), done + len(rest)


def _read_json(data: str, field: str, place: list | None, folder: str) -> Iterator[tuple]:
    """JSON lines: a document a line, in its field; of `place` lines and characters came before."""
    lines, characters = place or (0, 0)
    with _open(data) as opened:
        for _ in itertools.islice(opened, lines):
            pass
        while batch := list(itertools.islice(opened, ROWS)):
            texts = []
            for number, line in enumerate(batch, lines + 1):
                texts.append(_field_of(line, field, number) if line.strip() else None)
            lines, characters = lines + len(batch), characters + sum(map(len, batch))
            yield *_documents(texts), characters, [lines, characters]


def _field_of(line: str, field: str, number: int) -> str | None:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is no JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"line {number} is no object: give JSON lines")
    if field not in row:
        raise ValueError(f"line {number} has no {field}: give --field as one of {', '.join(row)}")
    return row[field]


def _read_parquet(data: str, field: str, place: list | None, folder: str) -> Iterator[tuple]:
    """A document a row, in its column; of `place` rows and characters came before."""
    if data.endswith(COMPRESSED):  # Parquet is read from its end
        with fsspec.open(data, compression="infer") as packed:
            data = f"{folder}/unpacked.parquet"
            with open(data, "wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
    rows, characters = place or (0, 0)
    with fsspec.open(data) as opened:
        # Page by page: a row group, or a column of one, may be larger than memory.
        file = pyarrow.parquet.ParquetFile(opened, pre_buffer=False, buffer_size=2**20)
        if field not in file.schema_arrow.names:
            names = ", ".join(file.schema_arrow.names)
            raise ValueError(f"it has no {field}: give --field as one of {names}")
        sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        ends = list(itertools.accumulate(sizes, initial=0))[1:]
        groups = [g for g, end in enumerate(ends) if end > rows]
        at = ends[groups[0]] - sizes[groups[0]] if groups else 0  # rows before those read
        for batch in file.iter_batches(ROWS, groups, columns=[field]) if groups else ():
            values = batch.column(0).to_pylist()[max(0, rows - at) :]
            at += batch.num_rows
            if values:
                texts, begins, empty = _documents(values)
                rows, characters = at, characters + sum(map(len, texts))
                yield texts, begins, empty, characters, [rows, characters]


def _documents(values: list) -> tuple[list[str], list[bool], int]:
    """The texts among the values, that each begins a document, and how many are none."""
    for value in values:
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{type(value).__name__} where text should be: give another --field")
    texts = [value for value in values if value]
    return texts, [True] * len(texts), len(values) - len(texts)


def _safe_cut(text: str) -> int:
    """The last place where text can be cut without changing its tokens; 0 if there is none. GPT-2's
    pattern begins a new match before white space that something else follows, whatever is before
    it."""
    while text := text.rstrip():
        at = max(text.rfind(space) for space in " \t\r\n")
        if at <= 0 or not text[at + 1].isspace():
            return max(at, 0)
        text = text[:at]
    return 0


def without_long_gaps(text: str) -> list[str]:
    """The text, cut within white space of half a million characters before the last of them, where
    its tokens stay: GPT-2's pattern would overflow a stack on the whole."""
    if len(text) < 500_000:
        return [text]
    # Without the four that Python takes for white space and the pattern does not.
    spaces = re.finditer(r"[^\S\x1c-\x1f]+", text)
    cuts = [gap.end() - 1 for gap in spaces if gap.end() - gap.start() >= 500_000]
    return [text[a:b] for a, b in itertools.pairwise((0, *cuts, len(text)))]
