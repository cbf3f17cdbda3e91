"""Download a file once: it is complete and as expected, or it is not there."""

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

import requests

from common.kit.cli import UserError

DATA_DIR = Path(__file__).parents[2] / "data"


def download(url: str, path: Path, n_bytes: int, sha256: str, instead: str) -> None:
    """Download url to path, a file in DATA_DIR: to a temporary name, which is checked and renamed.

    Raises UserError for a damaged download and for a folder that can't be written to;
    requests.RequestException if nothing arrived. `instead` tells the user what else to do.
    """
    plain = {"Accept-Encoding": "identity"}  # no compression: the bytes are those of the file
    try:
        with requests.get(url, headers=plain, stream=True, timeout=(5, 30)) as response:
            response.raise_for_status()
            _save(response, path, n_bytes, sha256, instead)
    except requests.RequestException:
        raise
    except OSError as error:
        why = f"{path.parent} can't be written: {error.strerror}"
        raise UserError(f"{why}; mend it, or {instead}") from None


def check(path: Path, sha256: str) -> bytes:
    """The bytes of a downloaded file. Raises UserError if they have changed since."""
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UserError(f"{path} has sha256 {found[:12]}…, not {sha256[:12]}…: delete it, and it "
                        "is downloaded anew")  # fmt: skip
    return data


def reason(error: requests.RequestException) -> str:
    """Why nothing arrived, in a few words."""
    if isinstance(error, requests.HTTPError):
        return f"HTTP {error.response.status_code}"
    return type(error).__name__  # refused, no such host, no answer in time


def _save(response: requests.Response, path: Path, n_bytes: int, sha256: str, instead: str) -> None:
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{secrets.token_hex(4)}.partial")  # two may download at once
    size, digest, fault = 0, hashlib.sha256(), ""
    try:
        with open(partial, "xb") as file:
            try:
                for chunk in response.iter_content(2**16):
                    size += file.write(chunk)
                    digest.update(chunk)
            except requests.RequestException:
                size, fault = response.raw.tell(), ", cut off"  # with the chunk that was lost
                if not size:
                    raise
        if size != n_bytes or digest.hexdigest() != sha256:
            raise UserError(f"the download of {path.stem} arrived with {size:,} bytes of "
                            f"{n_bytes:,}{fault}, sha256 {digest.hexdigest()[:12]}… for "
                            f"{sha256[:12]}…: try again, or {instead}")  # fmt: skip
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):  # it is not empty: the file is there
                path.parent.rmdir()
