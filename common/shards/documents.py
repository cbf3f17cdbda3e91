"""Documents, one after the other, from a source of any size: a dataset on the Hub, a file, or a
folder of files of one kind. Memory holds a few documents at a time, never a whole file."""

import io
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

from common.kit.cli import UserError
from common.kit.disk import visible

HUB = {  # name → (dataset on the Hub, revision, its Parquet files)
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "main", "sample/10BT/*.parquet"),
    "openwebtext": ("Skylion007/openwebtext", "refs/convert/parquet", "plain_text/*train/*"),
}
# The Hub's own errors, those of the HTTP client it is built on, and the system's.
HUB_ERRORS = (HfHubHTTPError, *HfHubHTTPError.__bases__, OSError)
KINDS = {".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
CODECS = {".gz": "gzip", ".zst": "zstd"}
MAX_CHARACTERS = 2**23  # in a document: a longer one is a mistake or an attack
ROWS = 16  # documents in a batch
PIECE = 2**17  # characters of a text file in a batch
LONG_GAP = 500_000  # characters of white space: GPT-2's pattern overflows its stack on more
# Up to the last place where a cut does not change the tokens on either side: GPT-2's pattern always
# begins a new match at a white-space character before something else.
UP_TO_A_CUT = re.compile(r".+(?=[ \t\r\n]\S)", re.DOTALL)


def find_files(source: str, leave_out: Path) -> dict[str, int]:
    """The files of a source, paths or hf://…, in reading order, with their sizes in bytes. A source
    is one of HUB, a file, or a folder with its subfolders, except leave_out. Prints how many files
    it skips. Raises UserError unless all others are of one known kind."""
    if source in HUB:
        return _files_on_the_hub(source)
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"{source} does not exist: give {', '.join(HUB)}, a file or a folder")
    found = [file for file in (path, *visible(path)) if file.is_file()]
    found = [file for file in found if leave_out.resolve() not in file.resolve().parents]
    kinds = {file: _kind(file) for file in found if _kind(file)}
    if len(set(kinds.values())) > 1:  # a README.md beside the data only describes it
        kinds = {file: kind for file, kind in kinds.items() if file.suffix.lower() != ".md"}
    if len(set(kinds.values())) != 1:
        several = " and ".join(sorted(set(kinds.values()))) or "no"
        endings = f"{', '.join(KINDS)}, each also with {' or '.join(CODECS)}"
        hint = f"give {', '.join(HUB)}, or files of one kind that end as {endings}"
        raise UserError(f"{source} has {several} files: {hint}")
    if skipped := [file.name for file in found if file not in kinds]:
        print(f"skipped: {len(skipped)} files of another kind, the first {skipped[0]}")
    return {str(file): file.stat().st_size for file in kinds}


def _files_on_the_hub(source: str) -> dict[str, int]:
    """The files at the newest commit, which is in their names: a resumed run reads the same."""
    dataset, revision, pattern = HUB[source]
    try:
        commit = HfApi().dataset_info(dataset, revision=revision).sha
        found = HfFileSystem().glob(f"datasets/{dataset}@{commit}/{pattern}", detail=True)
    except HUB_ERRORS as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:100]
        raise UserError(f"{source} can't be read from the Hub ({reason}): try again") from None
    if not found:
        raise UserError(f"{source} is no longer at {dataset}/{pattern}: give files of your own")
    return {f"hf://{file}": found[file]["size"] for file in sorted(found)}


def _kind(path: Path) -> str | None:
    name = path.with_suffix("") if path.suffix.lower() in CODECS else path
    return KINDS.get(name.suffix.lower())


@dataclass(frozen=True)
class Position:
    """How far a source has been read. Reading resumes there."""

    file: int = 0
    inside: int = 0  # pieces, lines or rows read of that file
    documents: int = 0
    empty: int = 0  # documents without text, skipped
    bytes: int = 0  # approximate


@dataclass(frozen=True)
class Batch:
    """Consecutive texts."""

    texts: list[str]
    first: int  # the number of the first document; if the source is a single text, of the piece
    begins: bool  # each text begins a document; if False, the only text continues the one before
    end: Position  # after these texts


def read(files: dict[str, int], start: Position, field: str, piece: int = PIECE) -> Iterator[Batch]:
    """The documents of files of one kind, in order, from a position on. In JSON lines and Parquet,
    a document is in `field`. A text file is one document, in pieces of about `piece` characters.

    Raises UserError with the file's name for a damaged file, text that is not UTF-8, a missing
    field, or a document of more than MAX_CHARACTERS.
    """
    import pyarrow  # not at the top: if it is missing, `require` says so in one line

    kind, documents, empty = _kind(Path(next(iter(files)))), start.documents, start.empty
    is_text, one_text = kind == "text", kind == "text" and len(files) == 1
    for index, path in list(enumerate(files))[start.file :]:
        before = sum(list(files.values())[:index])  # bytes
        inside = start.inside if index == start.file else 0
        opener = HfFileSystem().open if path.startswith("hf://") else open
        try:
            with opener(path, "rb") as file:
                stream = pyarrow.input_stream(file, CODECS.get(Path(path).suffix.lower()))
                if kind != "parquet":
                    stream = io.TextIOWrapper(stream, "utf-8-sig", newline="")  # line ends stay
                values = READERS[kind](stream, piece if is_text else field)
                values = itertools.islice(values, inside, None)
                while some := list(itertools.islice(values, 1 if is_text else ROWS)):
                    texts = [_checked(value) for value in some if value not in (None, "")]
                    begins = not is_text or inside == 0
                    first = inside + 1 if one_text else documents + begins
                    inside += len(some)
                    documents += len(texts) * begins
                    empty += len(some) - len(texts)
                    end = Position(index, inside, documents, empty, before + file.tell())
                    yield Batch(texts, first, begins, end)
        except (*HUB_ERRORS, ValueError, RecursionError, pyarrow.ArrowException) as error:
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"{path} can't be read: {reason}; repair it or try again") from None


def _checked(text) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{type(text).__name__} where text should be: give another --field")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"a document has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    return text


def _pieces(file, size: int) -> Iterator[str]:
    rest = ""
    while more := file.read(size):
        looked_through, rest = max(0, len(rest) - 2), rest + more
        if cut := UP_TO_A_CUT.match(rest, looked_through):
            yield rest[: cut.end()]
            rest = rest[cut.end() :]
        elif len(rest) > MAX_CHARACTERS:
            break
    if rest:
        yield rest


def _json_lines(file, field: str) -> Iterator:
    for number, line in enumerate(file, 1):
        try:
            value = json.loads(line)[field] if line.strip() else None
        except (ValueError, TypeError, LookupError):
            what = f"line {number}, {line[:40]!r}, is no JSON object with the --field {field}"
            raise ValueError(what) from None
        yield value


def _parquet_rows(stream, field: str) -> Iterator:
    from pyarrow.parquet import ParquetFile

    if not stream.seekable():  # compressed; but a Parquet file is read from its end
        packed, stream = stream, tempfile.TemporaryFile()
        shutil.copyfileobj(packed, stream)
    # Page by page: a row group, or a column of one, may be larger than memory.
    file = ParquetFile(stream, pre_buffer=False, buffer_size=2**20)
    if field not in (names := file.schema_arrow.names):
        raise ValueError(f"it has no {field}: give --field as one of {', '.join(names)}")
    for batch in file.iter_batches(ROWS, columns=[field]):
        yield from batch.column(0).to_pylist()


READERS = {"text": _pieces, "json": _json_lines, "parquet": _parquet_rows}


def without_long_gaps(text: str) -> list[str]:
    """The text, cut before the last character of each long gap; the tokens stay the same."""
    if len(text) < LONG_GAP:
        return [text]
    # Except the four characters that are white space in Python but not in GPT-2's pattern.
    gaps = [gap.span() for gap in re.finditer(r"[^\S\x1c-\x1f]+", text)]
    cuts = [end - 1 for start, end in gaps if end - start >= LONG_GAP]
    return [text[a:b] for a, b in itertools.pairwise((0, *cuts, len(text)))]
