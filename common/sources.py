"""Where a text of any size comes from: a name on the Hub, a file, or a folder of files of one kind,
text, JSON lines or Parquet, each plain or compressed with gzip or zstd."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

from common.cli import UserError

# name → (dataset on the Hub, revision, its Parquet files, about how many tokens they are)
HUB = {
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "main", "sample/10BT/*.parquet", 9_950_000_000),
    "openwebtext": (
        "Skylion007/openwebtext", "refs/convert/parquet", "plain_text/*train*/*.parquet",
        9_035_000_000,
    ),
}  # fmt: skip
KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
COMPRESSED = (".gz", ".zst")
# The Hub's own, and what it builds on: those of the HTTP client of the day, and the system's.
HUB_ERRORS = (HfHubHTTPError, *HfHubHTTPError.__bases__, OSError)


@dataclass(frozen=True)
class Source:
    """Files of one kind, in the order in which they are read. What is not known is 0."""

    files: tuple[str, ...]
    kind: str  # text, json or parquet
    field: str  # of a JSON line, or the column of Parquet
    bytes: int  # on the disk, as they are
    tokens: int  # about


def find_source(name: str, field: str, leave_out: Path | None = None) -> Source:
    """A source by name or by path: a file, or the files of a folder and the folders in it, but for
    those in leave_out. Says how many files it passes over.

    Raises UserError for a path that is not there, an empty folder, files of several kinds or of
    none, and a Hub that can't be reached.
    """
    if name in HUB:
        return _on_the_hub(name)
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(f"{name} is none of {', '.join(HUB)}, and no file or folder: give one")
    found = (
        [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
    )
    if leave_out:
        found = [file for file in found if leave_out.resolve() not in file.resolve().parents]
    files = {file: _kind(file) for file in found if file.stat().st_size}
    known = {file: kind for file, kind in files.items() if kind}
    if not known:
        endings = f"{', '.join(KINDS)}, each also with {' or '.join(COMPRESSED)}"
        raise UserError(f"{name} has no file, or only empty ones, whose name ends as {endings}")
    kinds = sorted(set(known.values()))
    if len(kinds) > 1:
        raise UserError(f"{name} has files of several kinds, {', '.join(kinds)}: give one kind")
    if len(known) < len(found):
        print(f"passed over: {len(found) - len(known)} files, empty or of another kind")
    size = sum(file.stat().st_size for file in known)
    return Source(tuple(map(str, known)), kinds[0], field, size, 0)


def _on_the_hub(name: str) -> Source:
    """Its files at the commit that is there now, so that a run that goes on reads the same."""
    dataset, revision, pattern, tokens = HUB[name]
    try:
        commit = HfApi().dataset_info(dataset, revision=revision).sha
        files = HfFileSystem().glob(f"datasets/{dataset}@{commit}/{pattern}")
    except HUB_ERRORS as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:100]
        raise UserError(f"{name} can't be had from the Hub ({reason}): try again") from None
    if not files:
        raise UserError(f"{name} is no longer at {dataset}/{pattern}: give files of your own")
    return Source(tuple(f"hf://{file}" for file in sorted(files)), "parquet", "text", 0, tokens)


def _kind(path: Path) -> str | None:
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    return KINDS.get(name.suffix.lower())
