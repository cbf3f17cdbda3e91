"""Download a file once: it is complete and as expected, or absent."""

import hashlib
from pathlib import Path

import requests

from common.kit.cli import UserError
from common.kit.disk import write_bytes

DATA_DIR = Path(__file__).parents[2] / "data"


def downloaded(url: str, name: str, sha256: str, instead: str) -> bytes:
    """The bytes of the file at url, which is kept in DATA_DIR under this name.

    Raises UserError if their SHA-256 is not the expected one, and requests.RequestException if
    nothing arrived. `instead` tells the user what else to do.
    """
    path, hint = DATA_DIR / name, "delete it to download it again"
    is_new = not path.exists()
    if is_new:
        response = requests.get(url, timeout=(5, 30))
        response.raise_for_status()
        hint = f"try again, or {instead}"
    data = response.content if is_new else path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UserError(f"{path} has {len(data):,} bytes of sha256 {found[:12]}…, not "
                        f"{sha256[:12]}…: {hint}")  # fmt: skip
    if is_new:
        DATA_DIR.mkdir(exist_ok=True)
        write_bytes(path, data)
    return data


def reason(error: requests.RequestException) -> str:
    """Why nothing arrived, in a few words."""
    if isinstance(error, requests.HTTPError):
        return f"HTTP {error.response.status_code}"
    return type(error).__name__  # connection refused, no such host, timeout
