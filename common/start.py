"""How a run begins, or goes on: its folder, its model, what a checkpoint of it brings back."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import torch

from common import checkpoint
from common.cli import UserError
from common.data import Tokens
from common.device import seed_everything
from common.disk import check_room, lock, write_json
from common.distributed import Ranks
from common.init import init_weights, tie_weights
from common.model import GPT, GPTConfig, preset
from common.recipes import ATTENTION, run_config
from common.runlog import run_folder
from common.speed import pad_vocab
from common.tokenfiles import Ahead

BYTES_IN_CHECKPOINT, BYTES_IN_EXPORT = 12, 4  # a parameter: fp32, with AdamW's two moments or not


def open_run(options) -> dict | None:
    """What the run that goes on left in --out: its newest checkpoint's texts by name, and `path`;
    before its first checkpoint `config` alone. None for a new run. Raises UserError for a folder
    that is there already, or is not."""
    folder = Path(options.out)
    if not options.resume:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder} exists: --resume goes on with the run in it, another --out "
                            "starts one")  # fmt: skip
        return None
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} holds no run: start one without --resume")
    path = checkpoint.newest(folder / "checkpoints")
    if path:
        return checkpoint.read(path) | {"path": path}
    print(f"{folder} has no checkpoint yet: starting at step 0")
    try:
        return {"config": json.loads((folder / "config.json").read_text())}
    except ValueError:
        raise UserError(f"{folder}/config.json is damaged: start another run") from None


def first_model(options, saved: dict | None, ranks: Ranks) -> GPT:
    """The model on every rank, whole or, with --shard, a slice of it: rank 0's everywhere, once it
    is replicated or a checkpoint restored."""
    model = _model_of_rank_0(options, saved) if ranks.is_main else None
    config = ranks.from_main(lambda: model.config)
    if options.shard:
        return ranks.shard(config, model and dict(model.named_parameters()))
    return (model or tie_weights(GPT(config))).to(ranks.device)


def _model_of_rank_0(options, saved: dict | None) -> GPT:
    """The model that the options describe, tied and padded, as it is at step 0: drawn anew, or
    pretrained. Of a run that goes on, only the shape counts: its weights are in the checkpoint."""
    how = {"attention": ATTENTION[options.attention], "dropout": options.dropout}
    if saved and "model" in saved:
        return tie_weights(GPT(GPTConfig(**saved["model"] | how)))
    if options.init_from:
        from common.pretrained import HubUnreachable, from_hugging_face  # a second to import

        try:
            pretrained = from_hugging_face(options.init_from)
        except HubUnreachable as error:
            raise UserError(f"{options.init_from} can't be had from the Hub ({error})") from None
        if not torch.equal(pretrained.lm_head.weight, pretrained.transformer.wte.weight):
            raise UserError(f"{options.init_from} has a head of its own: give a tied GPT-2")
        model = tie_weights(GPT(replace(pretrained.config, **how)))
        model.load_state_dict(pretrained.state_dict())
    else:
        config = preset(options.model, block_size=options.block_size, **how)
        model = init_weights(tie_weights(GPT(config)), options.seed)
    T, limit = options.block_size, model.config.block_size
    if T > limit:
        raise UserError(f"--block-size {T} is more than the {limit} that {options.init_from} reads")
    return pad_vocab(model)


def prepare(options, model: GPT) -> TextIO:
    """Make the run's folder, with its configuration, and lock it. Raises UserError if the disk has
    no room for the checkpoints and the export, and if another process has the folder."""
    n_parameters = sum(p.numel() for p in model.parameters())
    need = (BYTES_IN_CHECKPOINT * (options.keep + 1) + BYTES_IN_EXPORT) * n_parameters
    check_room(Path(options.out), need, f"{options.keep + 1} checkpoints and the export")
    folder = run_folder(options.out)
    held = lock(folder / ".lock")
    if held is None:
        raise UserError(f"another process trains in {folder}: give another --out")
    write_json(folder / "config.json", run_config(options))
    return held


def fingerprint(tokens: Tokens) -> str:
    """Tells one text from another by its length and ends, without reading all of it."""
    ids = tokens.train
    ends = b"".join(part.astype("<u2").tobytes() for part in (ids[:4096], ids[-4096:]))
    return f"{len(ids)} tokens, {hashlib.sha256(ends).hexdigest()[:16]}"


def put_back(path: Path | None, state: dict, model, optimizer, scaler, batches, ranks) -> bool:
    """Put a checkpoint's state and tensors back; returns as checkpoint.restore."""
    batches.restore(state["data"])
    if state["scaler"]:  # not empty: the run was in fp16
        scaler.load_state_dict(state["scaler"])
    return checkpoint.restore(path, model, optimizer, ranks)


def go_on(
    saved: dict, text: str, model: GPT, optimizer, scaler, batches: Ahead, ranks: Ranks
) -> dict:
    """Put back what checkpoint.save kept; returns its state. Raises UserError if text, the
    fingerprint, is another one."""
    state, seed = saved["state"], saved["config"]["seed"]
    if state["text"] != text:
        raise UserError(f"the run began with a text of {state['text']}, and --data now has {text}: "
                        "give the one that it began with")  # fmt: skip
    path = saved["path"] if ranks.is_main else None
    if not put_back(path, state, model, optimizer, scaler, batches, ranks):
        print("generators start anew: the run had fewer ranks, or another kind of device")
        seed_everything(seed + ranks.rank + state["step"] * ranks.world_size)
    print(f"going on from {saved['path']}")
    return state
