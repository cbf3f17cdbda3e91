"""How a search begins, or goes on: its folder; a setting's model and where that goes on from."""

import contextlib
import json
import math
import shutil
from pathlib import Path

import torch

from common import checkpoint
from common.cli import UserError
from common.disk import check_room, lock, write_json
from common.init import tie_weights
from common.model import GPT, GPTConfig, preset
from common.phases import Phase
from common.runlog import run_folder
from common.search import Claim, Search
from common.start import BYTES_IN_CHECKPOINT


def open_search(options, phases: list[Phase], space: dict[str, tuple], text: str) -> Search:
    """The search in --out, new or begun with the same options. Raises UserError for another."""
    size = math.prod(map(len, space.values()))
    if size < phases[0].settings:
        raise UserError(f"--phases wants {phases[0].settings} settings, and the space has {size}: "
                        "widen it, or ask for fewer")  # fmt: skip
    made_from = {"phases": options.phases, "sampler": options.sampler, **space,
                 "eval_tokens": options.eval_tokens, "seed": options.seed,
                 "text": text}  # fmt: skip
    made_from = json.loads(json.dumps(made_from))  # tuples become lists, as in the file
    folder = run_folder(options.out)
    file = folder / "search.json"
    if not file.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(f"{options.out} holds something else: give another --out")
    held = lock(folder / ".lock", wait=True)
    if file.exists():
        try:
            there = json.loads(file.read_text())
            names = sorted(made_from.keys() | there.keys())
        except (ValueError, AttributeError):
            raise UserError(f"{file} is damaged: give another --out") from None
        for name in names:
            if made_from.get(name) != there.get(name):
                raise UserError(f"the search in {options.out} has {name} {there.get(name)}, not "
                                f"{made_from.get(name)}: give that, or another --out")  # fmt: skip
    else:
        settings = phases[1].settings if len(phases) > 1 else phases[0].settings
        need = BYTES_IN_CHECKPOINT * largest(space) * (settings + 1)
        check_room(folder, need, "the checkpoints")
        write_json(file, made_from)
    held.close()
    return Search(file.parent, phases, space, options.sampler, options.seed)


def largest(space: dict[str, tuple]) -> int:
    """The parameters of the space's largest model, which is laid out without any memory."""
    with torch.device("meta"):
        model = tie_weights(GPT(config_of({name: max(values) for name, values in space.items()})))
    return sum(parameter.numel() for parameter in model.parameters())


def config_of(values: dict) -> GPTConfig:
    """The model of a setting; its heads are of 64, as GPT-2's, unless it says how many."""
    heads = values.get("n_head", values["n_embd"] // 64)
    name = f"{values['n_layer']}x{heads}x{values['n_embd']}"
    return preset(name, block_size=values["block_size"])


def checkpoint_of(claim: Claim, until: int) -> tuple[Path, dict] | None:
    """The checkpoint that a setting goes on from, and its state. One that is damaged, or that
    another search left, is removed: the setting starts again."""
    folder = claim.folder / "checkpoints"
    with contextlib.suppress(UserError):  # newest has said what is damaged
        path = checkpoint.newest(folder)
        found = path and checkpoint.read(path)
        if found and found["config"] == claim.values and found["state"]["step"] <= until:
            return path, found["state"]
    shutil.rmtree(folder, ignore_errors=True)
    return None
