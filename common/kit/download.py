"""Download a file once: it is complete and as expected, or absent."""

import os
from pathlib import Path

import requests

from common.kit.disk import checked

DATA_DIR = Path(__file__).parents[2] / "data"


def downloaded(url: str, name: str, sha256: str, instead: str) -> bytes:
    """The bytes of the file at url, which is kept in DATA_DIR under this name.

    Raises UserError if their SHA-256 is not the expected one, requests.RequestException if nothing
    arrived. `instead` tells the user what else to do.
    """
    path = DATA_DIR / name
    if path.exists():
        return checked(path.read_bytes(), sha256, str(path), "delete it to download it again")
    response = requests.get(url, timeout=(5, 30))
    response.raise_for_status()
    what = f"the download of {name}"
    data = checked(response.content, sha256, what, f"try again, or {instead}")
    partial = path.with_suffix(f".{os.getpid()}.partial")  # two processes may download at once
    DATA_DIR.mkdir(exist_ok=True)
    partial.write_bytes(data)
    os.replace(partial, path)
    return data
