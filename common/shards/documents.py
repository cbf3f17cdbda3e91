"""Documents, one after the other, from a source of any size. Memory holds a few of them at a time,
never a file."""

import io
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
from huggingface_hub import HfFileSystem

from common.kit.cli import UserError
from common.shards.sources import CODECS, HUB_ERRORS, Source

MAX_CHARACTERS = 2**23  # in a document: a longer one is a mistake, or an attack
ROWS = 16  # documents in a batch
PIECE = 2**17  # characters of a text file in a batch
LONG_GAP = 500_000  # characters of white space: GPT-2's pattern overflows its stack on more
# Up to the last place where a cut leaves the tokens of both sides as they are: GPT-2's pattern
# always begins a new match at white space that something else follows.
UP_TO_A_CUT = re.compile(r".+(?=[ \t\r\n]\S)", re.DOTALL)


@dataclass(frozen=True)
class Batch:
    """Some texts, and where to resume after them."""

    texts: list[str]
    begins: bool  # each text begins a document; if not, the one text continues the one before
    empty: int  # documents without text, skipped
    state: dict[str, int]  # for read(): the file, and the pieces, lines or rows read of it
    done: float  # the share of the source read so far, about


def read(source: Source, state: dict | None = None, piece: int = PIECE) -> Iterator[Batch]:
    """The documents of all files in order, from the start or from a Batch's state. A text file is
    one document and comes in pieces of about `piece` characters.

    Raises UserError, naming the file, for what can't be read: a damaged file, text that is not
    UTF-8, a field that does not exist, a document of more than MAX_CHARACTERS.
    """
    first, inside = (state["file"], state["inside"]) if state else (0, 0)
    reader = {"text": _pieces, "json": _json_lines, "parquet": _parquet_rows}[source.kind]
    how, n = (piece, 1) if source.kind == "text" else (source.field, ROWS)
    for index, path in enumerate(source.files[first:], first):
        opener = HfFileSystem().open if path.startswith("hf://") else open
        before, codec = sum(source.sizes[:index]), CODECS.get(Path(path).suffix.lower())
        try:
            with opener(path, "rb") as file:
                stream = pyarrow.CompressedInputStream(file, codec) if codec else file
                if source.kind != "parquet":
                    stream = io.TextIOWrapper(stream, "utf-8-sig", newline="")  # line ends stay
                values = itertools.islice(reader(stream, how), inside, None)
                while some := list(itertools.islice(values, n)):
                    texts = [_checked(value, path) for value in some if value not in (None, "")]
                    begins = source.kind != "text" or inside == 0
                    inside += len(some)
                    state, done = {"file": index, "inside": inside}, before + file.tell()
                    yield Batch(texts, begins, len(some) - len(texts), state, done / source.bytes)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(f"{path} is not UTF-8 (byte {byte:#04x}): convert it") from None
        except (*HUB_ERRORS, ValueError, RecursionError, pyarrow.ArrowException) as error:
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"{path} can't be read: {reason}; repair it or try again") from None
        inside = 0


def _checked(text, path: str) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{type(text).__name__} where text should be: give another --field")
    if len(text) > MAX_CHARACTERS:
        found, limit = f"{len(text):,} characters in a document", f"{MAX_CHARACTERS:,}"
        raise UserError(f"{path} has {found}, the maximum is {limit}: break it up")
    return text


def _pieces(file, size: int) -> Iterator[str]:
    rest = ""
    while more := file.read(size):
        looked_through = max(0, len(rest) - 2)
        rest += more
        cut = UP_TO_A_CUT.match(rest, looked_through)
        if cut or len(rest) > MAX_CHARACTERS:
            end = cut.end() if cut else len(rest)
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _json_lines(file, field: str) -> Iterator:
    for number, line in enumerate(file, 1):
        try:
            row = json.loads(line) if line.strip() else {field: None}
            yield row[field]
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({error})") from None
        except TypeError:
            raise ValueError(f"line {number} is not an object: give JSON lines") from None
        except KeyError:
            found = ", ".join(row)
            raise ValueError(
                f"line {number} has no {field}: give --field as one of {found}"
            ) from None


def _parquet_rows(stream, field: str) -> Iterator:
    if not stream.seekable():  # it is compressed, and Parquet is read from its end
        packed, stream = stream, tempfile.TemporaryFile()
        shutil.copyfileobj(packed, stream)
    # Page by page: a row group, or a column of one, may be larger than memory.
    file = pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=2**20)
    if field not in file.schema_arrow.names:
        found = ", ".join(file.schema_arrow.names)
        raise ValueError(f"it has no {field}: give --field as one of {found}")
    for batch in file.iter_batches(ROWS, columns=[field]):
        yield from batch.column(0).to_pylist()


def without_long_gaps(text: str) -> list[str]:
    """The text, cut before the last character of each gap of LONG_GAP: its tokens stay the same."""
    if len(text) < LONG_GAP:
        return [text]
    # Without the four characters that Python takes for white space and the pattern does not.
    gaps = [gap.span() for gap in re.finditer(r"[^\S\x1c-\x1f]+", text)]
    cuts = [end - 1 for start, end in gaps if end - start >= LONG_GAP]
    return [text[a:b] for a, b in itertools.pairwise((0, *cuts, len(text)))]
