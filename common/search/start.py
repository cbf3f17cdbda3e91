"""The folder of a search: new, or begun with the same options."""

import json
import math
from pathlib import Path

from common.kit.cli import UserError
from common.kit.disk import check_room, lock, run_folder, write_json
from common.run.resume import BYTES_IN_CHECKPOINT
from common.search.phases import Phase, largest
from common.search.study import Search


def open_search(options, phases: list[Phase], space: dict[str, tuple], text: str) -> Search:
    """The search in --out, new or begun with the same options. Raises UserError for another."""
    size = math.prod(map(len, space.values()))
    if size < phases[0].trials:
        raise UserError(f"--phases wants {phases[0].trials} trials, and the space has {size}: "
                        "widen it, or ask for fewer")  # fmt: skip
    names = ("phases", "sampler", "eval_tokens", "seed")
    given = space | {name: getattr(options, name) for name in names} | {"text": text}
    given = json.loads(json.dumps(given))  # tuples become lists, as in the file
    folder = run_folder(options.out)
    file = folder / "search.json"
    if not file.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(f"{options.out} holds something else: give another --out")
    held = lock(folder / ".lock", wait=True)
    if file.exists():
        _check_same(file, given)
    else:
        promoted = phases[min(1, len(phases) - 1)].trials
        need = BYTES_IN_CHECKPOINT * largest(space) * (promoted + 1)
        check_room(folder, need, "the checkpoints")
        write_json(file, given)
    held.release()
    return Search(folder, phases, space, options.sampler, options.seed)


def _check_same(file: Path, given: dict) -> None:
    """Raises UserError if the search that the file describes is another."""
    try:
        there = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        raise UserError(f"{file} is damaged: give another --out")
    for name in sorted(given.keys() | there.keys()):
        if given.get(name) != there.get(name):
            old, new = json.dumps(there.get(name)), json.dumps(given.get(name))
            raise UserError(f"the search in {file.parent} has {name} {old}, not {new}: give that, "
                            "or another --out")  # fmt: skip
