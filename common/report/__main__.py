"""Measure this machine and write the tables of docs/machines/ to a Markdown file.

    python -m common.report                 # writes docs/machines/NAME.md
    python -m common.report --out mine.md

It runs stages 1, 5, 7 and 9 one after the other, on a machine that should be idle: under 10 minutes
on an H100, 5 on two CPU cores. A part that fails becomes a line in the file. The file is rewritten
after each part, and replaces an older one: Ctrl-C keeps the parts that are done.
"""

import csv
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.kit.cli import duration, run
from common.kit.device import describe, pick_device, processor
from common.kit.disk import run_folder, write_text
from common.kit.measure import spread, timed
from common.model import causal_attention
from common.speed import autocast_dtype, flash_attention

ROOT = Path(__file__).parents[2]
KERNELS = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
WARMUP = 4  # first steps of a training run, which its table leaves out


@dataclass
class Options:
    out: str | None = None  # write to this file; by default docs/machines/NAME.md
    device: str = "auto"  # run on auto, cpu, cuda or mps


def parts(device: torch.device) -> list[tuple[str, int, str]]:
    """Title, stage and options of each part to run on the device, in sizes that suit it."""
    ladders, decoding, training, B = [""], "--max-new-tokens 128", "--steps 30", 8
    if device.type == "cuda":
        gib = torch.cuda.get_device_properties(device).total_memory / 2**30
        B = max(2, 2 ** int(math.log2(gib / 1.2)))  # rows: 64 in 80 GB, 16 in 24
        training = "--steps 14 --recipe gpt2-124m --eval-tokens 4096 --keep 1"
        training += "" if gib > 39 else " --total-batch-tokens 131072"
        # Rung 0's attention scores limit the batch; the upper rungs also run with a larger one.
        sizes = "--batch-size 16", f"--batch-size {B} --rungs 3 5 7"
        ladders = [f"{size} --block-size 1024 --steps 12" for size in sizes]
        decoding = ""
    return [
        ("Parity with Hugging Face", 1, "--samples 1 --eval-tokens 2048"),
        *(("Training speed", 5, ladder) for ladder in ladders),
        *((f"Training, B = {b}", 7, f"{training} --batch-size {b} --out run") for b in (B // 2, B)),
        ("Decoding speed", 9, decoding),
    ]


def run_part(stage: int, options: str, device: torch.device) -> str:
    """Run a stage in a temporary folder, and show what it prints. Returns that, or a table of stage
    7's speed, or one line if it fails."""
    script = next(ROOT.glob(f"{stage}_*.py"))
    options, printed, start = options.split(), [], time.perf_counter()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [sys.executable, str(script), *options, "--device", str(device)]
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(command, cwd=folder, text=True, **output) as process:
            for line in process.stdout:
                print(f"  {line}", end="")
                printed.append(line.replace(folder, "…"))
        if process.returncode:
            return f"Failed: {(printed or ['it printed nothing'])[-1].strip()}"
        said = f"```\n{''.join(printed).rstrip()}\n```"
        result = training_table(Path(folder)) if stage == 7 else said
    took = duration(time.perf_counter() - start)
    return f"`{' '.join([script.name, *options])}`, in {took}:\n\n{result}"


def training_table(folder: Path) -> str:
    """The speed of stage 7's run in folder/run."""
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    names = ("ms", "tokens_per_s", "mfu")
    ms, tokens, mfu = ([float(row[name]) for row in rows[WARMUP:]] for name in names)
    return (
        "| ms per step (median) | spread | tokens/s | MFU | first and last loss |\n"
        "|--:|--:|--:|--:|--:|\n"
        f"| {median(ms):,.1f} | ±{spread(ms):.1%} | {median(tokens):,.0f} | {median(mfu):.1%} "
        f"| {float(rows[0]['loss']):.3f}, {float(rows[-1]['loss']):.3f} |"
    )


def attention_table(device: torch.device, shape=(16, 12, 1024, 64)) -> str:
    """The time of attention in GPT-2 124M, forward and backward, for q, k, v of shape (B, nh, T,
    hs): by the formula, with the kernel that SDPA chooses, and with each of SDPA's kernels."""
    dtype = autocast_dtype(device) or torch.float32
    q, k, v = torch.randn(3, *shape, device=device, dtype=dtype).requires_grad_()

    def ms(attention: Callable) -> str:
        try:
            times = [timed(lambda: attention(q, k, v).sum().backward(), device) for _ in range(12)]
            return f"{min(seconds for seconds, _ in times[2:]) * 1000:.2f}"
        except RuntimeError as error:
            return str(error).split(". ")[0]

    rows = {"the formula": ms(causal_attention), "SDPA's choice": ms(flash_attention)}
    for kernel in KERNELS:
        with sdpa_kernel(getattr(SDPBackend, kernel)):
            rows[kernel] = ms(flash_attention)
    return table({f"(B, nh, T, hs) = {shape}, {dtype}": "ms"} | rows)


def machine(device: torch.device) -> str:
    """The hardware and the versions."""
    packages = ("torch", "transformers", "numpy")
    rows = {
        "device": describe(device),
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in packages),
        "commit": said_by("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        query = "--query-gpu=name,driver_version,power.limit"
        rows["driver"] = said_by("nvidia-smi", query, "--format=csv,noheader", f"-i={device.index}")
        rows["CUDA"] = f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return table({"": ""} | rows)


def table(rows: dict[str, str]) -> str:
    """Two columns. The first row is the header."""
    header, *others = (f"| {name} | {value} |" for name, value in rows.items())
    return "\n".join([header, "|---|---|", *others])


def said_by(*command: str) -> str:
    """What a command prints, in one line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return " ".join((done.stdout or done.stderr).split())


def main(options: Options) -> None:
    device = pick_device(options.device)
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else f"{processor()}, {os.cpu_count()} cores"
    slug = "-".join(re.findall(r"\w+", name.lower()))
    file = Path(options.out or ROOT / "docs" / "machines" / f"{slug}.md")
    run_folder(str(file.parent))  # raises now, not after the work, if it can't be written to
    text, todo = f"# {name}\n\n{machine(device)}\n", parts(device)
    for number, (title, stage, given) in enumerate(todo, 1):
        print(f"\n{number} of {len(todo)}: {title}, stage {stage}")
        text += f"\n## {title}, stage {stage}\n\n{run_part(stage, given, device)}\n"
        write_text(file, text)
    if gpu:  # last, since this process then holds GPU memory
        write_text(file, f"{text}\n## Attention's kernels\n\n{attention_table(device)}\n")
    print(f"\nsaved: {file}")


if __name__ == "__main__":
    run(main, Options)
