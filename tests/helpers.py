"""What the tests of stage 7 share: a tiny run, what it logged and saved, and two ranks."""

import contextlib
import csv
import io
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
import traceback
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import load_script
from safetensors.torch import save_file

from common.kit.cli import run

# Some milliseconds a step: two micro-batches of 2 windows of 8 tokens, 17 steps an epoch.
TINY = (
    "--model", "1x1x16", "--batch-size", "2", "--block-size", "8", "--total-batch-tokens", "32",
    "--dtype", "float32", "--attention", "formula", "--compile", "no", "--lr", "1e-2",
    "--checkpoint-every", "100", "--eval-every", "100", "--eval-tokens", "64",
)  # fmt: skip
LOGGED = ("step", "loss", "lr", "norm", "val_loss", "bits_per_byte")  # all but times


@contextlib.contextmanager
def one_thread():
    """torch with one thread, here and in new processes. The operations of a tiny model are over
    before a second thread of a busy machine has woken up: each then waits for milliseconds."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)


def neither_sample_nor_plot(patch) -> None:
    """Stage 7 in this process leaves both out."""
    patch.setattr("common.generate.generate", lambda model, ids, *_, **__: ids)
    patch.setattr("common.run.log.LongRunLog.plot", lambda log: None)


def only_train(patch) -> None:
    """Besides, it exports by export_weights."""
    neither_sample_nor_plot(patch)
    # As a module, since transformers, which the real one imports, takes seconds.
    pretrained = types.ModuleType("common.pretrained")
    pretrained.export = export_weights
    patch.setitem(sys.modules, "common.pretrained", pretrained)


def export_weights(model, folder: Path, facts: dict) -> None:
    save_file(dict(model.named_parameters()), folder / "exported.safetensors")


def finished_run(folder: Path, *options: str) -> Path:
    """Run stage 7 in this process, with the folder as its --out, for a fixture of a module."""
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr("common.kit.measure.matmul_peak", lambda device, dtype: 1e11)
        only_train(patch)
        script = load_script(7)
        run(script.main, script.Options, [*options, "--out", str(folder), "--device", "cpu"])
    return folder


def logged(folder: Path) -> list[tuple[str, ...]]:
    """The LOGGED columns of a run."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [tuple(row[name] for name in LOGGED) for row in csv.DictReader(file)]


def losses(folder: Path) -> dict[int, str]:
    """The training loss of each step."""
    return {int(row[0]): row[1] for row in logged(folder) if row[1]}


def val_losses(folder: Path) -> dict[int, str]:
    """The validation loss before each step that has one."""
    return {int(row[0]): row[4] for row in logged(folder) if row[4]}


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def saved(folder: Path) -> dict[str, bytes]:
    """The files of the newest checkpoint of a run, without the options (folders differ)."""
    path = max((folder / "checkpoints").glob("step_*"))
    return {
        p.name: p.read_bytes()
        for p in path.iterdir()
        if p.name not in ("config.json", "manifest.json")
    }


def state(folder: Path) -> dict:
    return json.loads(saved(folder)["state.json"])


def assert_same_run(one: Path, two: Path) -> None:
    """The same losses, weights, moments, generators and position in the data, to the last bit."""
    assert logged(one) == logged(two)
    files, others = saved(one), saved(two)
    assert files.keys() == others.keys() and len(files) == 5
    for name in files:
        assert files[name] == others[name], name


def copy_as_killed(run: Path, copy: Path) -> Path:
    """A copy of a finished run, as a kill before its last checkpoint would have left it."""
    shutil.copytree(run, copy)
    shutil.rmtree(max((copy / "checkpoints").glob("step_*")))
    shutil.rmtree(copy / "hf", ignore_errors=True)
    return copy


# Two ranks: two processes that live as long as a module's tests, and run one job after the other.


@dataclass(frozen=True)
class Done:
    """How a job ended on one rank."""

    code: int
    stdout: str
    stderr: str


class TwoRanks:
    """Two processes with the variables that torchrun sets. They import torch once."""

    def __init__(self):
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import helpers; "
        env = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", code + "helpers.work()"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            )
            for rank in range(2)
        ]  # fmt: skip

    def start(self, *options: str, cwd: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        job = {"options": [*options, "--device", "cpu"], "cwd": str(cwd), "port": port}
        for process in self.processes:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()

    def wait(self) -> list[Done]:
        """How the job ended on each rank. Both are killed if one is still at it after 5 minutes."""
        end = time.monotonic() + 300
        for process in self.processes:
            if not select.select([process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                self.close()
                raise AssertionError("a rank does not end")
        return [Done(**json.loads(process.stdout.readline())) for process in self.processes]

    def run(self, *options: str, cwd: Path) -> list[Done]:
        self.start(*options, cwd=cwd)
        return self.wait()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            process.stdout.close()


def work() -> None:
    """One rank: read a job a line, run stage 7 with its options, and write how it ended."""
    patch = pytest.MonkeyPatch()
    patch.setattr("common.kit.measure.matmul_peak", lambda device, dtype: 1e11)
    patch.setattr("common.kit.cli.time.sleep", lambda seconds: None)
    only_train(patch)
    script = load_script(7)
    for line in sys.stdin:
        job = json.loads(line)
        os.chdir(job["cwd"])
        os.environ["MASTER_PORT"] = job["port"]
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
        code = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                run(script.main, script.Options, job["options"])
            except SystemExit as stop:
                code = stop.code
            except BaseException:
                code = 1
                traceback.print_exc()
            finally:
                if dist.is_initialized():  # the job ended by an error
                    dist.destroy_process_group()
        said = []
        for stream in (out, err):
            stream.flush()
            said.append(stream.buffer.getvalue().decode())
        print(json.dumps({"code": code, "stdout": said[0], "stderr": said[1]}), flush=True)
