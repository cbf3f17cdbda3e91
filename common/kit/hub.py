"""A model's folder in Hugging Face's format, on this machine or downloaded from the Hub, and its
card: the README.md that the Hub shows."""

import os
import shlex
import sys
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from common.kit.cli import UserError


class HubUnreachable(UserError):
    """The Hub can't be reached, and nothing is cached."""


def model_folder(name_or_dir: str, *patterns: str) -> Path:
    """A folder with files that match each of the patterns: a local one, or a model of the Hub,
    downloaded into Hugging Face's cache if needed. Raises HubUnreachable, and UserError for a name,
    a folder or a file that does not exist."""
    path = Path(name_or_dir).expanduser()
    if path.is_dir():
        if missing := _missing(path, patterns):
            hf, other = path / "hf", "a folder in transformers' format, as a run's hf/"
            raise UserError(f"{path} has no {missing}: give {hf if hf.is_dir() else other}")
        return path
    if path.exists() or name_or_dir.startswith((".", "/", "~")) or name_or_dir.count("/") > 1:
        what = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{name_or_dir} {what}: give a Hub name, or a folder with a config.json")
    try:
        folder = Path(huggingface_hub.snapshot_download(name_or_dir, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        why = f"and the Hub can't be reached ({first_line(error.__cause__ or error)})"
        raise HubUnreachable(f"no folder is called {name_or_dir}, {why}") from None
    except (HfHubHTTPError, HFValidationError) as error:
        why = first_line(error)
        raise UserError(f"the Hub has no model '{name_or_dir}' for you: {why}") from None
    if missing := _missing(folder, patterns):
        raise HubUnreachable(f"no {missing} of {name_or_dir} was downloaded, and none is cached")
    return folder


def _missing(folder: Path, patterns: tuple[str, ...]) -> str | None:
    """The first pattern that matches no file, without its *."""
    found = (p.replace("*", "") for p in patterns if not any(q.is_file() for q in folder.glob(p)))
    return next(found, None)


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def check_new_folder(folder: str | os.PathLike) -> Path:
    """The folder to export into. Raises UserError if it is not empty, or can't be created."""
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder: export into a new one")
    above = next(path for path in folder.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{folder} can't be created in {above}: export into another folder")
    return folder


def card(title: str, facts: dict[str, object]) -> str:
    """The card's text, with one line per fact. The fact "command" is the command that made the
    model: by default, this process's own."""
    own = shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    command = facts.get("command", own)
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items() if name != "command")
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
---

# {title}

{lines}

Made by

```sh
{command}
```

To try it, with the name of this folder or of its repository on the Hub:

```python
from transformers import pipeline

print(pipeline("text-generation", model=FOLDER)("To be")[0]["generated_text"])
```
"""
