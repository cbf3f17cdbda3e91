"""The machine a script runs on: choose it, seed it, wait for it, name it."""

import ctypes
import gc
import platform
import sys

import torch

from common.cli import UserError


def pick_device(name: str = "auto") -> torch.device:
    """The device called name (auto, cpu, cuda, cuda:1, mps); says which it took, and why.

    `auto` takes a CUDA GPU, else Apple's, else the CPU. Raises UserError for one that is not there.
    """
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    why = "as asked"
    if name == "auto":
        name = next((kind for kind, there in found.items() if there), "cpu")
        why = "no GPU found" if name == "cpu" else "the GPU found"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", *found) or (":" in name and not index.isdecimal()):
        raise UserError(f"--device {name} is not known: give auto, cpu, cuda or mps")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not found.get(kind, True) or int(index or 0) >= count:
        here = ", ".join(["cpu", *(kind for kind, there in found.items() if there)])
        raise UserError(f"--device {name} is not on this machine: it has {here}; try --device auto")
    device = torch.device(name)
    if device.type == "cpu":
        keep_freed_memory()
    print(f"device: {device} ({why}): {describe(device)}")
    return device


def seed_everything(seed: int) -> None:
    """Seed every generator that torch draws from by default, on all devices."""
    torch.manual_seed(seed)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe(device: torch.device) -> str:
    """The hardware and the torch version in a few words, such as a table of timings needs."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or "CPU"
        if device.type == "cpu":
            name += f", {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a training step frees, for the next step to use again.

    By default it gives blocks of 32 MiB or more back to the kernel, which must then fault every
    page of the logits and gradients in anew, at every step. mallopt(3), M_MMAP_THRESHOLD and
    M_TRIM_THRESHOLD. Other systems' allocators are left as they are.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        # Before 2.35 glibc takes no more than 32 MiB. Set alone, the second would freeze the first
        # at 128 KiB.
        if libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1) or libc.mallopt(M_MMAP_THRESHOLD, 2**25):
            libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def release_memory() -> None:
    """Hand what is no longer used back to the system: between two models, not between steps."""
    torch._dynamo.reset()  # a compiled function holds on to its model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
