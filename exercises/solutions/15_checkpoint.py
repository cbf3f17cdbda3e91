import hashlib
import os

import torch
from safetensors.torch import load_file

FILE = "common/run/checkpoint.py"


def answer(module) -> dict:
    def save(folder, step, data):
        tensors = {name: {} for name in module.TENSORS}
        tensors["model"]["data"] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        module.write(folder, step, tensors, {name: {} for name in module.TEXTS}, keep=9)

    def newest(folder):
        path = module.newest(folder)
        if path is None:
            return None
        data = load_file(path / "model.safetensors")["data"]
        return int(path.name[5:]), data.numpy().tobytes()

    return {"save": save, "newest": newest}


def sum_fits(content):
    return hashlib.sha256(content[32:]).digest() == content[:32]


def simple(
    name="step_{:08d}", temporary=True, flush="both", remove=False, number=int, fits=sum_fits
):
    """One file per step, written with care or without."""

    def save(folder, step, data):
        path = folder / name.format(step)
        if remove:
            for old in folder.glob("step_*"):
                old.unlink()
        partial = folder / f"{path.name}.partial" if temporary else path
        with open(partial, "wb") as file:
            file.write(hashlib.sha256(data).digest())
            file.write(data)
            if flush == "both":
                file.flush()
            if flush:
                os.fsync(file.fileno())
        if temporary:
            os.replace(partial, path)

    def newest(folder):
        paths = [path for path in folder.glob("step_*") if path.suffix != ".partial"]
        for path in sorted(paths, key=lambda path: number(path.name[5:]), reverse=True):
            content = path.read_bytes()
            if fits(content):
                return int(path.name[5:]), content[32:]
        return None

    return {"save": save, "newest": newest}


def read_all(content):
    assert sum_fits(content), "the checksum does not match"
    return True


def lock_first(folder, step, data):
    """Leaves a lock behind if it is killed."""
    os.close(os.open(folder / "lock", os.O_CREAT | os.O_EXCL))
    simple()["save"](folder, step, data)
    (folder / "lock").unlink()


WRONG = {
    "and newest takes it": [("if sha256(path / name) != digest", "if False")],
    "step 10 is whole": [("        print(f\"{path} is damaged", "        return None\n"
                          "        print(f\"{path} is damaged")],
    "nothing is renamed": simple(temporary=False),
    "as numbers, not as text": simple("step_{}", number=str),
    "a part of step 20": simple(temporary=False, fits=lambda content: True),
    "before the bytes": simple(flush=None),
    "in Python's buffer": simple(flush="the system's"),
    "must stay until": simple(remove=True),
    "newest raises AssertionError": simple(temporary=False, fits=read_all),
    "the next save fails": simple() | {"save": lock_first},
    "in an empty folder": simple() | {"newest": lambda folder: (0, b"")},
    "after steps 9 and 10 are saved": simple() | {"newest": lambda folder: None},
}  # fmt: skip
