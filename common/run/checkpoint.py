"""All that a run needs to resume as if it had never stopped, in folders that are whole or absent.

    checkpoints/step_00000500/
        model.safetensors      the weights
        optimizer.safetensors  AdamW's two moments and its count of steps, for each weight
        random.safetensors     the state of every rank's random generators
        state.json             step, position in the data, gradient scaler
        config.json            the options; model.json: the model's sizes
        manifest.json          the SHA-256 of each of these

A checkpoint is written under a temporary name, flushed to the disk, and renamed, which is atomic: a
kill or a full disk leaves the one before as it was. Nothing is pickled.
"""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from common.init import tie_weights
from common.kit.cli import UserError
from common.kit.disk import replace_folder, sha256, sync
from common.model import GPT, GPTConfig
from common.run.ranks import Ranks

TENSORS = ("model", "optimizer", "random")
TEXTS = ("state", "config", "model")


def collect(model, optimizer, ranks: Ranks) -> dict[str, dict[str, torch.Tensor]] | None:
    """The TENSORS of a checkpoint, unsharded, on the CPU of rank 0; None on the others. Called on
    all ranks. On a CPU they are not copies: write them before the next step."""
    tensors = {name: {} for name in TENSORS}
    for name, parameter in model.named_parameters():
        tensors["model"][name] = ranks.full(parameter)
        for key, value in optimizer.state[parameter].items():
            tensors["optimizer"][f"{name}/{key}"] = ranks.full(value)
    states = {"cpu": torch.get_rng_state()}
    if ranks.device.type != "cpu":
        states[ranks.device.type] = torch.get_device_module(ranks.device).get_rng_state()
    for rank, found in enumerate(ranks.gather(states)):
        tensors["random"] |= {f"{rank}/{kind}": state for kind, state in found.items()}
    return tensors if ranks.is_main else None


def restore(path: Path | None, model, optimizer, ranks: Ranks) -> bool:
    """Restore a checkpoint's tensors, read by rank 0 alone (path is None on the others). Called on
    all ranks, with a new optimizer. False if the run had fewer ranks or another kind of device:
    then no generator is restored."""
    opened = [safe_open(path / f"{name}.safetensors", "pt") if path else None for name in TENSORS]
    weights, moments, random = opened
    for name, parameter in model.named_parameters():
        ranks.fill(parameter, weights and weights.get_tensor(name))
        state = optimizer.state[parameter]
        state["step"] = torch.zeros((), device=parameter.device)
        state |= {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
        for key, tensor in state.items():
            ranks.fill(tensor, moments and moments.get_tensor(f"{name}/{key}"))
    states = ranks.from_main(lambda: {key: random.get_tensor(key) for key in random.keys()})
    kind, mine = ranks.device.type, f"{ranks.rank}/"
    if any(f"{r}/{k}" not in states for r in range(ranks.world_size) for k in ("cpu", kind)):
        return False
    torch.set_rng_state(states[mine + "cpu"])
    if kind != "cpu":
        torch.get_device_module(ranks.device).set_rng_state(states[mine + kind])
    return True


def save(folder: Path, texts: dict, model, optimizer, keep: int, ranks: Ranks) -> Path:
    """Collect and write a checkpoint of the run in `folder`, at texts["state"]["step"]. Returns its
    path."""
    tensors = collect(model, optimizer, ranks)
    sizes = asdict(model.config)
    texts["model"] = {k: v for k, v in sizes.items() if k not in ("attention", "dropout")}
    place = (folder / "checkpoints", texts["state"]["step"])
    return ranks.from_main(lambda: write(*place, tensors, texts, keep))


def write(folder: Path, step: int, tensors: dict, texts: dict, keep: int) -> Path:
    """Write TENSORS and TEXTS as folder/step_…, and remove all but the `keep` newest up to it.

    Raises UserError, with nothing left of the new one, if the disk does not take it.
    """
    final = folder / f"step_{step:08d}"
    partial = folder / f".{final.name}.partial"
    try:
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".*.partial"):
            shutil.rmtree(leftover)
        partial.mkdir()
        for name in TENSORS:
            save_file(tensors[name], partial / f"{name}.safetensors")
        for name in TEXTS:
            (partial / f"{name}.json").write_text(json.dumps(texts[name], indent=1) + "\n")
        sums = {path.name: sha256(path) for path in sorted(partial.iterdir())}
        (partial / "manifest.json").write_text(json.dumps(sums, indent=1) + "\n")
        for path in (*partial.iterdir(), partial):
            sync(path)
        replace_folder(partial, final)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"the checkpoint at step {step} can't be written into {folder}: {error}; "
                        "make room, and resume from the one before") from None  # fmt: skip
    steps = _checkpoints(folder)
    at = steps.index(final)
    for path in (*steps[: max(0, at + 1 - keep)], *steps[at + 1 :]):  # the later ones were damaged
        shutil.rmtree(path)
    return final


def newest(folder: Path) -> Path | None:
    """The newest undamaged checkpoint in folder; prints which ones are damaged. None if there is no
    checkpoint. Raises UserError if all are damaged."""
    paths = _checkpoints(folder)
    for path in reversed(paths):
        reason = why_damaged(path)
        if reason is None:
            return path
        print(f"{path} is damaged, skipped: {reason}")
    if paths:
        raise UserError(f"all {len(paths)} checkpoints in {folder} are damaged: start a new run")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in folder, oldest first. Anything under another name is not ours."""
    paths = [path for path in folder.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name)]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step_")))


def why_damaged(path: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None if it is whole."""
    try:
        sums = json.loads((path / "manifest.json").read_text())
        expected = [f"{name}.safetensors" for name in TENSORS] + [f"{name}.json" for name in TEXTS]
        if sorted(sums) != sorted(expected):
            return "manifest.json does not list its files"
        for name, digest in sums.items():
            if sha256(path / name) != digest:
                return f"{name} is not what was written"
    except OSError as error:
        return f"{Path(error.filename).name} can't be read: {error.strerror}"
    except ValueError:  # JSON, UTF-8
        return "manifest.json is not what was written"
    return None


def read(path: Path) -> dict[str, dict]:
    """A checkpoint's TEXTS, by name."""
    return {name: json.loads((path / f"{name}.json").read_text()) for name in TEXTS}


def load_model(path: Path) -> GPT:
    """A checkpoint's model, on the CPU."""
    model = tie_weights(GPT(GPTConfig(**read(path)["model"])))
    model.load_state_dict(load_file(path / "model.safetensors"), strict=False)  # the head is tied
    return model.eval()
