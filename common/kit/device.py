"""The device a script runs on: pick it, synchronize with it, describe it."""

import ctypes
import gc
import logging
import platform
import re
import sys
import warnings

import torch

from common.kit.cli import UserError


def pick_device(name: str = "auto") -> torch.device:
    """The device called name (auto, cpu, cuda, cuda:1, mps). Prints which one it is, and why.

    `auto` is a CUDA GPU, else Apple's, else the CPU. Raises UserError for a device that is not
    found, or that torch can't use.
    """
    if not re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", name):
        raise UserError(f"--device {name} is not known: give auto, cpu, cuda or mps")
    kind, _, index = name.partition(":")
    number = int(index or 0)
    fault = gpu_fault(number) if kind in ("auto", "cuda") else None
    if fault and kind == "cuda":
        raise UserError(f"--device {name} can't be used: {fault}, or give --device cpu")
    here = {"cpu": 1}  # how many of each kind
    if torch.backends.mps.is_available():
        here["mps"] = 1
    if torch.cuda.is_available() and not fault:
        here["cuda"] = torch.cuda.device_count()
    why = "as asked"
    if kind == "auto":
        kind = list(here)[-1]
        why = fault or "no GPU found" if kind == "cpu" else "the GPU found"
    if number >= here.get(kind, 0):
        there = ", ".join(here)
        raise UserError(f"--device {name} is not on this machine: it has {there}; try auto")
    device = torch.device(kind, number) if kind == "cuda" else torch.device(kind)
    if kind == "cpu":
        keep_freed_memory()
    print(f"device: {device} ({why}): {describe(device)}")
    return device


def gpu_fault(index: int) -> str | None:
    """Why torch can't use the NVIDIA GPU with this index, and what to install, found by running a
    kernel on it. None if torch can, or if there is no such GPU."""
    try:
        with warnings.catch_warnings(action="ignore"):  # they say the same as the error
            torch.zeros(1, device=f"cuda:{index}").add_(1)
        return None
    except (RuntimeError, AssertionError) as error:
        fault = str(error).split("\n")[0].split(". ")[0]
    if re.search(r"no NVIDIA driver|No (CUDA|HIP) GPUs|not compiled|invalid device", fault):
        return None
    if "no kernel image" in fault:
        major, minor = torch.cuda.get_device_capability(index)
        fault = f"it is of sm_{major}{minor}, torch has code for {torch.cuda.get_arch_list()}"
    hint = "install another driver, or another torch from pytorch.org"
    return f"{fault}; torch {torch.__version__} is for CUDA {torch.version.cuda}: {hint}"


def quiet_compiler() -> None:
    """Silence torch.compile's advice to use TF32, which stage 5 measures, and its message, on a
    CPU, that it found CUDA and no GPU."""
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def repeat_exactly(device: torch.device) -> None:
    """Make a training step on a CPU give the same bits each time. Otherwise the threads of a
    compiled step add up the gradient of the embedding in varying order."""
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a costly check


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all its work. On a CPU nothing is pending."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def describe(device: torch.device) -> str:
    """The hardware and the torch version in a few words."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        name = processor()
        if device.type == "cpu":
            n = torch.get_num_threads()
            name += f", {n} thread{'s' if n > 1 else ''}"
    return f"{name}, torch {torch.__version__}"


def processor() -> str:
    """The CPU's name."""
    return torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or "CPU"


def keep_freed_memory() -> None:
    """Make glibc reuse the memory that a training step frees.

    By default it returns blocks of 32 MiB or more to the system, which then has to fault in every
    page of the logits and gradients again at every step. See mallopt(3), M_MMAP_THRESHOLD and
    M_TRIM_THRESHOLD. Other systems' allocators are not changed.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        # Before 2.35 glibc accepts at most 32 MiB. The trim threshold alone would fix the mmap
        # threshold at 128 KiB.
        if libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1) or libc.mallopt(M_MMAP_THRESHOLD, 2**25):
            libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


def release_memory() -> None:
    """Return unused memory to the system. Call it between two models, not between steps."""
    torch._dynamo.reset()  # a compiled function holds on to its model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
