"""What is read from a JSON file, held to the form in which it was written: names, types, ranges."""

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args, get_origin

from common.kit.cli import UserError
from common.kit.disk import open_file

COUNT = (0, 2**63)  # how many of something
SIZE = (1, 2**24)  # how wide, long or many a part of a model is


def read_json(path: Path):
    """The value in a JSON file. Raises UserError for what is none, OSError for a file that can't be
    read."""
    try:
        with open_file(path) as file:
            return json.load(file)
    except FileNotFoundError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):  # no JSON, no UTF-8; nested too deep
        raise UserError(f"{path} is damaged: it is no JSON") from None


def check_fields(value, fields: Mapping, where: str | Path) -> None:
    """Raises UserError unless value, read from `where`, is an object with these fields: {name:
    kind}. A kind is a type, a Literal or a union of those; for whole numbers (at least, less than);
    or the fields of an object within."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is damaged: it is {reprlib.repr(value)}")
    for name, kind in fields.items():
        if name not in value:
            raise UserError(f"{where} is damaged: it has no {name}")
        if isinstance(kind, Mapping):
            check_fields(value[name], kind, f"{where}: {name}")
        elif not _is(value[name], kind):
            raise UserError(f"{where} is damaged: {name} is {reprlib.repr(value[name])}")


def _is(value, kind) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_args(kind):
        return any(_is(value, one) for one in get_args(kind))
    if isinstance(kind, tuple):
        return type(value) is int and kind[0] <= value < kind[1]
    if kind in (int, float) and type(value) is int:
        return abs(value) < 2**63
    return type(value) is kind
