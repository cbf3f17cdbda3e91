"""Where a text of any size comes from: a dataset on the Hub, a file, or a folder of files of one
kind (text, JSON lines or Parquet), each plain or compressed with gzip or zstd."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import HfHubHTTPError

from common.kit.cli import UserError

# name → (dataset on the Hub, revision, its Parquet files, about how many tokens they hold)
HUB = {
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "main", "sample/10BT/*.parquet", 9.95e9),
    "openwebtext": (
        "Skylion007/openwebtext",
        "refs/convert/parquet",
        "plain_text/*train*/*.parquet",
        9.035e9,
    ),
}
KINDS = {".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
CODECS = {".gz": "gzip", ".zst": "zstd"}
# The Hub's own errors, those of the HTTP client it is built on, and the system's.
HUB_ERRORS = (HfHubHTTPError, *HfHubHTTPError.__bases__, OSError)


@dataclass(frozen=True)
class Source:
    """Files of one kind, in the order in which they are read."""

    files: tuple[str, ...]  # paths, or hf://… on the Hub
    sizes: tuple[int, ...]  # of the files, in bytes
    kind: str  # text, json or parquet
    field: str  # of a JSON line, or the column of Parquet
    tokens: float  # an estimate

    @property
    def bytes(self) -> int:
        return sum(self.sizes)

    @property
    def one_text(self) -> bool:
        return self.kind == "text" and len(self.files) == 1


def find_source(name: str, field: str, leave_out: Path | None = None) -> Source:
    """The source called name: one of HUB, a file, or a folder with the folders in it, except
    leave_out. Prints which files it skips.

    Raises UserError for a path that does not exist, a folder without files of a known kind or with
    several kinds, and a Hub that can't be reached.
    """
    if name in HUB:
        return _on_the_hub(name)
    path = Path(name).expanduser()
    if not path.exists():
        raise UserError(f"{name} is none of {', '.join(HUB)}, and no file or folder: give one")
    found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if leave_out:
        found = [file for file in found if leave_out.resolve() not in file.resolve().parents]
    kinds = {file: _kind(file) for file in found if file.stat().st_size and _kind(file)}
    if len(set(kinds.values())) > 1:  # a README.md describes the data beside it
        kinds = {file: kind for file, kind in kinds.items() if file.suffix.lower() != ".md"}
    if not kinds:
        endings = f"{', '.join(KINDS)}, each also with {' or '.join(CODECS)}"
        raise UserError(f"{name} has no file, or only empty ones, whose name ends as {endings}")
    kind, *others = sorted(set(kinds.values()))
    if others:
        several = ", ".join((kind, *others))
        raise UserError(f"{name} has files of several kinds, {several}: give one kind")
    skipped = [file.name for file in found if file not in kinds]
    if skipped:
        named = ", ".join(skipped[:3]) + (", …" if len(skipped) > 3 else "")
        print(f"skipped: {len(skipped)} files, empty or of another kind ({named})")
    sizes = [file.stat().st_size for file in kinds]
    # A token is about 4 bytes of text, which compression makes a third.
    packed = kind == "parquet" or next(iter(kinds)).suffix.lower() in CODECS
    tokens = sum(sizes) * (3 if packed else 1) / 4
    return Source(tuple(map(str, kinds)), tuple(sizes), kind, field, tokens)


def _on_the_hub(name: str) -> Source:
    """Its files at the newest commit, whose address is noted: a resumed run reads the same."""
    dataset, revision, pattern, tokens = HUB[name]
    try:
        commit = HfApi().dataset_info(dataset, revision=revision).sha
        found = HfFileSystem().glob(f"datasets/{dataset}@{commit}/{pattern}", detail=True)
    except HUB_ERRORS as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:100]
        raise UserError(f"{name} can't be read from the Hub ({reason}): try again") from None
    if not found:
        raise UserError(f"{name} is no longer at {dataset}/{pattern}: give files of your own")
    files = sorted(found)
    sizes = tuple(found[file]["size"] for file in files)
    return Source(tuple(f"hf://{file}" for file in files), sizes, "parquet", "text", tokens)


def _kind(path: Path) -> str | None:
    name = path.with_suffix("") if path.suffix.lower() in CODECS else path
    return KINDS.get(name.suffix.lower())
