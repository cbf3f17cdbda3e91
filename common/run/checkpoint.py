"""All that a run needs to resume as if it had never stopped, in folders that are whole or absent.

    checkpoints/step_00000500/
        model.safetensors      the weights
        optimizer.safetensors  AdamW's moments and count of steps, Muon's momentum, by weight
        random.safetensors     the state of every rank's random generators
        state.json             step, position in the data, gradient scaler
        config.json            the options; model.json: the model's sizes
        manifest.json          the SHA-256 of each of these

A checkpoint is written under a temporary name, flushed, and renamed: a kill or a full disk leaves
the previous one intact. Nothing is pickled.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from common.init import tie_weights
from common.kit.cli import UserError
from common.kit.disk import read_json, remove, sha256, share, whole_folder
from common.model import GPT, GPTConfig
from common.run.ranks import Ranks

TENSORS = ("model", "optimizer", "random")
TEXTS = ("state", "config", "model")
ADAMW, MUON = ("exp_avg", "exp_avg_sq", "step"), ("momentum_buffer",)  # for each weight
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")  # in model.json


def collect(model, optimizer, ranks: Ranks) -> dict[str, dict[str, torch.Tensor]] | None:
    """The TENSORS, unsharded, on rank 0's CPU; None on the other ranks. Called on all ranks. Some
    are not copies: write them before the next step."""
    tensors = {name: {} for name in TENSORS}
    for name, parameter in model.named_parameters():
        tensors["model"][name] = ranks.full(parameter)
        for key, value in optimizer.state[parameter].items():
            tensors["optimizer"][f"{name}/{key}"] = ranks.full(value)
    states, device = {"cpu": torch.get_rng_state()}, ranks.device
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    for rank, found in enumerate(ranks.gather(states)):
        tensors["random"] |= {f"{rank}/{kind}": state for kind, state in found.items()}
    return tensors if ranks.is_main else None


def restore(path: Path, model, optimizer, ranks: Ranks) -> bool:
    """Restore a checkpoint's tensors. Called on all ranks, with a new optimizer; only rank 0 reads.
    False if the run had fewer ranks or another kind of device: then no random generator is
    restored."""
    files = (path / f"{name}.safetensors" for name in TENSORS)
    weights, moments, random = (load_file(f) if ranks.is_main else {} for f in files)  # mapped
    saved = ranks.from_main(lambda: set(moments))
    for name, parameter in model.named_parameters():
        ranks.fill(parameter, weights.get(name))
        state = optimizer.state[parameter]
        for key in (*ADAMW, *MUON):
            if f"{name}/{key}" in saved:
                count = torch.zeros((), device=parameter.device)
                state[key] = count if key == "step" else torch.zeros_like(parameter)
                ranks.fill(state[key], moments.get(f"{name}/{key}"))
    states = ranks.from_main(lambda: random)
    kind, mine = ranks.device.type, f"{ranks.rank}/"
    if any(f"{r}/{k}" not in states for r in range(ranks.world_size) for k in ("cpu", kind)):
        return False
    torch.set_rng_state(states[mine + "cpu"])
    if kind != "cpu":
        torch.get_device_module(ranks.device).set_rng_state(states[mine + kind], ranks.device)
    return True


def resume(path: Path, state: dict, model, optimizer, scaler, batches, ranks: Ranks) -> bool:
    """Restore what `save` saved; state is the checkpoint's. Returns as restore."""
    batches.restore(state["data"])
    if state["scaler"]:  # not empty: the run was in fp16
        scaler.load_state_dict(state["scaler"])
    return restore(path, model, optimizer, ranks)


def save(
    folder: Path, texts: dict, model, optimizer, scaler, batches, keep: int, ranks: Ranks, best=None
) -> Path:
    """Collect and write a checkpoint of the run in `folder`; see `write`. Returns its path."""
    tensors = collect(model, optimizer, ranks)
    texts["state"] |= {"data": batches.state(), "scaler": scaler.state_dict()}
    texts["model"] = {name: getattr(model.config, name) for name in SIZES}
    place = (folder / "checkpoints", texts["state"]["step"])
    return ranks.from_main(lambda: write(*place, tensors, texts, keep, best))


def write(
    folder: Path, step: int, tensors: dict, texts: dict, keep: int, best: Path | None = None
) -> Path:
    """Write TENSORS and TEXTS as folder/step_…. Then remove later checkpoints, and earlier ones
    except the `keep` newest (this one included) and the best.

    Raises UserError if it can't be written; then nothing is left of it.
    """
    final = path_of(folder, step)
    for leftover in folder.glob(".step_*.partial"):  # of a process that was killed
        remove(leftover)
    with whole_folder(final, "make room, and resume from the one before") as partial:
        for name in TENSORS:
            save_file(tensors[name], partial / f"{name}.safetensors")
        for name in TEXTS:
            (partial / f"{name}.json").write_text(json.dumps(texts[name], indent=1) + "\n")
        sums = {path.name: sha256(path) for path in sorted(partial.iterdir())}
        (partial / "manifest.json").write_text(json.dumps(sums, indent=1) + "\n")
        share(partial)
    paths = _checkpoints(folder)
    until_now = paths[: paths.index(final) + 1]  # later ones were damaged
    for path in set(paths) - {best, *until_now[-keep:]}:
        remove(path)
    return final


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"


def newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint, or None. Prints the damaged; UserError if all are."""
    paths = _checkpoints(folder)
    for path in reversed(paths):
        if (reason := why_damaged(path)) is None:
            return path
        print(f"{path} is damaged, skipped: {reason}")
    if paths:
        raise UserError(f"all {len(paths)} checkpoints in {folder} are damaged: start a new run")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in folder, oldest first. Files with other names are not ours."""
    ours = [p for p in folder.glob("step_*") if re.fullmatch(r"step_[0-9]{8,18}", p.name)]
    return sorted(ours, key=lambda path: int(path.name[5:]))


def why_damaged(path: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None if it is complete. Raises OSError if
    one of its files can't be read, which does not mean that it is damaged."""
    try:
        sums = read_json(path / "manifest.json")
        expected = [f"{name}.safetensors" for name in TENSORS] + [f"{name}.json" for name in TEXTS]
        if sorted(sums) != sorted(expected):
            return "manifest.json does not list its files"
        for name, digest in sums.items():
            if sha256(path / name) != digest:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except UserError as error:
        return str(error)
    return None


def read(path: Path) -> dict[str, dict]:
    """A checkpoint's TEXTS, by name."""
    return {name: read_json(path / f"{name}.json") for name in TEXTS}


def load_model(path: Path) -> GPT:
    """A checkpoint's model, on the CPU."""
    model = tie_weights(GPT(GPTConfig(**read(path)["model"])))
    model.load_state_dict(load_file(path / "model.safetensors"), strict=False)  # the head is tied
    return model.eval()
