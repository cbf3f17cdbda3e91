"""Stage 7 on two ranks: the run of one process, and the end of one when the other ends."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn as nn
from conftest import load_script, started
from helpers import (
    TINY,
    TwoRanks,
    assert_same_run,
    checkpoints,
    copy_as_killed,
    finished_run,
    logged,
    losses,
    saved,
)
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from common.init import init_weights, tie_weights
from common.kit import cli
from common.kit.cli import UserError
from common.model import GPT, GPTConfig
from common.run import checkpoint, evals, ranks
from common.run.ranks import Ranks

CPU = torch.device("cpu")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def two_ranks():
    two_ranks = TwoRanks()
    yield two_ranks
    two_ranks.close()


@pytest.fixture(scope="module")
def options(text_file) -> tuple[str, ...]:
    return (*TINY, "--data", str(text_file), "--steps", "8", "--checkpoint-every", "4",
            "--optimizer", "adamw")  # fmt: skip


@pytest.fixture(scope="module")
def one_process(two_ranks, options, tmp_path_factory) -> Path:
    """A run of 8 steps in one process that accumulates two micro-batches."""
    return finished_run(tmp_path_factory.mktemp("one") / "run", *options)


@pytest.fixture
def done(two_ranks, tmp_path):
    """done(*options): stage 7 on two ranks; what rank 0 printed. Both must end well, and rank 1
    without a word."""

    def done(*options: str) -> str:
        main, other = two_ranks.run(*options, cwd=tmp_path)
        assert main.code == other.code == 0, main.stderr + other.stderr
        assert other.stdout == ""
        return main.stdout

    return done


# Two ranks, and one process that accumulates


def test_two_ranks_are_one_process_that_accumulates(done, one_process, options):
    """A micro-batch each, and the same numbers, bit for bit."""
    stdout = done(*options, "--out", "two")
    assert "ranks: 2, gloo" in stdout and stdout.count("step    3  loss") == 1
    assert logged(Path("two")) == logged(one_process)
    files, others = saved(one_process), saved(Path("two"))
    assert files["model.safetensors"] == others["model.safetensors"]
    assert files["optimizer.safetensors"] == others["optimizer.safetensors"]
    random = load_file("two/checkpoints/step_00000008/random.safetensors")
    assert not torch.equal(random["0/cpu"], random["1/cpu"])  # dropout differs between ranks


def test_a_run_is_resumed_with_another_number_of_ranks(done, one_process):
    copy_as_killed(one_process, Path("two"))
    stdout = done("--resume", "--out", "two")
    assert "new random generators" in stdout
    assert logged(Path("two")) == logged(one_process)
    assert saved(one_process)["model.safetensors"] == saved(Path("two"))["model.safetensors"]


@pytest.mark.parametrize("shard", [(), ("--shard",)])
def test_each_rank_resumes_with_its_own_random_generator(done, options, shard):
    """With dropout, the resumed run is the same only if every rank's generator is restored."""
    others = ("--dropout", "0.2", "--optimizer", "adamw" if shard else "muon")
    stdout = done(*options, *others, *shard, "--out", "one")
    assert "ranks: 2" in stdout
    copy_as_killed(Path("one"), Path("two"))
    stdout = done("--resume", *shard, "--out", "two")
    assert "new random generators" not in stdout
    assert_same_run(Path("one"), Path("two"))


def test_muon_is_not_sharded(two_ranks, options, tmp_path):
    more = ("--optimizer", "muon", "--shard", "--out", "two")
    main, other = two_ranks.run(*options, *more, cwd=tmp_path)
    assert main.code == other.code == 2 and "Muon needs it whole" in main.stderr
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("resumed", [False, True])
def test_a_sharded_run_is_the_same_to_rounding(done, one_process, options, resumed):
    """From its start, or resumed from the checkpoint of a run that was not sharded."""
    if resumed:
        copy_as_killed(one_process, Path("two"))
        done("--resume", "--shard", "--out", "two")
    else:
        done(*options, "--shard", "--out", "two")
    for row, other in zip(logged(one_process), logged(Path("two")), strict=True):
        for a, b in zip(row, other, strict=True):
            assert a == b or float(a) == pytest.approx(float(b), rel=1e-4)
    files, others = saved(one_process), saved(Path("two"))
    assert files.keys() == others.keys()
    weights = load_file(Path("two/checkpoints/step_00000008/model.safetensors"))
    exported = load_file("two/exported.safetensors")
    expected = load_file(one_process / "exported.safetensors")
    assert weights.keys() == exported.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)
        assert torch.equal(weights[name], exported[name])


def test_a_signal_to_one_rank_stops_both(two_ranks, options, tmp_path):
    two_ranks.start(*options, "--steps", "100000", "--checkpoint-every", "100000", "--out", "run",
                    cwd=tmp_path)  # fmt: skip
    metrics, end = tmp_path / "run/metrics.csv", time.time() + 60
    while not metrics.exists() or metrics.read_text().count("\n") < 6:
        assert time.time() < end
        time.sleep(0.01)
    os.kill(two_ranks.processes[1].pid, signal.SIGTERM)
    main, other = two_ranks.wait()
    assert main.code == other.code == 0, main.stderr + other.stderr
    assert "--resume continues the run" in main.stdout
    assert checkpoints(tmp_path / "run") == [f"step_{len(losses(tmp_path / 'run')):08d}"]


@pytest.mark.parametrize(
    "words, mistake",
    {
        "nowhere holds no run": ("--resume", "--out", "nowhere"),
        "--total-batch-tokens 48 is not a multiple of": ("--total-batch-tokens", "48"),
        "gone.txt does not exist": ("--data", "gone.txt"),
    }.items(),
)
def test_a_mistake_ends_both_ranks(two_ranks, options, tmp_path, words, mistake):
    """Also one that rank 0 alone can find. Rank 1 then is not left waiting for it."""
    for rank in two_ranks.run(*options, *mistake, cwd=tmp_path):
        assert rank.code == 2 and rank.stderr.startswith("error: ") and words in rank.stderr
        assert rank.stderr.count("\n") == 1


# torchrun itself


def ranks_of(torchrun: int) -> list[int]:
    """The processes that torchrun started."""
    found = subprocess.run(["pgrep", "-P", str(torchrun)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


@pytest.fixture(scope="module")
def long(options) -> tuple[str, ...]:
    return (*options, "--dropout", "0.2", "--steps", "100000", "--checkpoint-every", "3")


@pytest.fixture(scope="module")
def jobs(long, tmp_path_factory):
    """Two jobs at once, each of two ranks that train: [(process, folder)]."""
    folders = [tmp_path_factory.mktemp("job") for _ in range(2)]

    def job(folder):
        how = {"until": "step    5", "command": TORCHRUN}
        return started(7, *long, "--out", "run", cwd=folder, **how)

    with ThreadPoolExecutor() as pool:
        processes = [*pool.map(job, folders)]
    yield [*zip(processes, folders, strict=True)]
    for process in processes:
        process.kill()


def test_a_signal_to_torchrun_leaves_a_checkpoint(jobs):
    """torchrun itself then ends with another code than 0; the ranks have done their part."""
    process, folder = jobs[0]
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)
    assert "--resume continues the run" in stdout
    path = checkpoint.newest(folder / "run/checkpoints")
    assert checkpoint.read(path)["state"]["step"] == len(losses(folder / "run"))


def test_a_rank_that_dies_ends_the_job_and_resume_repeats_it(jobs, done, long, tmp_path):
    """Killed at a random moment, perhaps in the middle of a checkpoint."""
    process, folder = jobs[1]
    pids = ranks_of(process.pid)
    time.sleep(random.uniform(0, 0.5))
    os.kill(random.choice(pids), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert len(pids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in pids)
    first = checkpoint.read(checkpoint.newest(folder / "run/checkpoints"))["state"]["step"]
    stop = ("--stop-at", str(first + 4))
    shutil.copytree(folder / "run", tmp_path / "two")
    assert f"steps {first} to" in done("--resume", *stop, "--out", "two")
    done(*long, *stop, "--out", "one")
    assert_same_run(Path("one"), Path("two"))


# The parts, in one process


@pytest.fixture
def group():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture
def graphs(monkeypatch):
    """The names of the operations of each graph that torch.compile makes."""
    graphs = []

    def backend(graph, inputs):
        graphs.append([getattr(node.target, "__name__", "") for node in graph.graph.nodes])
        return graph

    monkeypatch.setattr(ranks, "compiled", lambda work: torch.compile(work, backend=backend))
    yield graphs
    torch._dynamo.reset()


def test_ddp_exchanges_gradients_only_when_told(group):
    module = DistributedDataParallel(nn.Linear(2, 2))
    for now in (False, True):
        with Ranks(CPU).exchanging(module, now):
            assert module.require_backward_grad_sync == now


def test_ddp_compiles_gpt2_into_five_graphs(group, graphs):
    """One for each bucket of gradients. The default buckets make 14."""
    with torch.device("meta"):
        model = tie_weights(GPT(GPTConfig()))
    model = tie_weights(model.to_empty(device=CPU))  # 0.5 GB that nobody draws
    ids = torch.zeros(1, 2, dtype=torch.long)
    Ranks(CPU, world_size=2).loss_function(model, compile=True)(ids, ids)
    assert len(graphs) == 5


@pytest.fixture
def sharded(group):
    """A model of 3 layers, sharded over this process alone, for autocast to bf16; ids; weights."""
    config = GPTConfig(3, 2, 24, 8, vocab_size=80)
    whole = init_weights(tie_weights(GPT(config)), 1)
    model = Ranks(CPU).shard(config, dict(whole.named_parameters()), torch.bfloat16)
    return model, torch.randint(80, (2, 8)), whole


def test_a_sharded_models_loss_is_fp32_and_no_copy_of_its_weights_is_kept(sharded):
    """Autocast would save one in bf16 of every weight until backward. What it saves of the blocks
    here are the gathered weights, which FSDP has freed when forward ends."""
    model, ids, whole = sharded
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x)
    with torch.autocast("cpu", torch.bfloat16), hooks:
        loss = Ranks(CPU).loss_function(model, compile=False)(ids, ids)
    shapes = {p.shape[::-1] for p in whole.transformer.h.parameters() if p.dim() == 2}
    found = [(x.dtype, x.untyped_storage().size()) for x in saved if x.shape in shapes]
    assert found == [(torch.bfloat16, 0)] * 12
    loss.backward()
    assert loss.dtype is torch.float32
    torch.testing.assert_close(loss, whole(ids, ids)[1], rtol=0, atol=0.01)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_sharded_models_blocks_and_loss_are_compiled(sharded, graphs):
    """Two graphs: all blocks share one. Evaluation in between stays eager."""
    model, ids, _ = sharded
    loss_of = Ranks(CPU).loss_function(model, compile=True)
    for T in (8, 3, 5):
        with torch.no_grad():
            model.eval()(ids[:, :T])
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(ids, ids)
        assert loss.dtype is torch.float32
    assert len(graphs) == 2 and "gelu" in graphs[0] and "cross_entropy" in graphs[1]


@pytest.mark.parametrize("error", [None, UserError, RuntimeError])
def test_ranks_part_unless_one_may_be_alone(monkeypatch, error):
    """After an error on one rank, to end the group would be to wait for the others."""
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(error) if error else contextlib.nullcontext():
        with ranks.all_ranks("cpu"):
            options = dist.group.WORLD._get_backend(CPU).options
            assert options._timeout == timedelta(minutes=30)  # a rank that is silent longer hangs
            if error:
                raise error
    assert dist.is_initialized() == (error is RuntimeError)
    if dist.is_initialized():
        dist.destroy_process_group()


def test_one_rank_of_each_machine_goes_first(monkeypatch):
    order = []
    monkeypatch.setattr(dist, "barrier", lambda: order.append("barrier"))
    for local_rank in (0, 1):
        with Ranks(CPU, 2 + local_rank, 4, local_rank).first():
            order.append(local_rank)
    assert order == [0, "barrier", "barrier", 1]


@pytest.fixture
def gpus(monkeypatch):
    """A machine of two GPUs, for two ranks; the list of what was made a rank's device."""
    chosen = []
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(ranks, "pick_device", torch.device)
    return chosen


@pytest.mark.parametrize("local_rank", [0, 1])
@pytest.mark.parametrize("name", ["cuda", "auto"])
def test_each_rank_has_a_gpu_of_its_own(gpus, name, local_rank):
    assert ranks._device_of_rank(name, local_rank) == torch.device("cuda", local_rank)
    assert gpus == [local_rank]


def test_ranks_share_a_cpu(gpus):
    assert ranks._device_of_rank("cpu", 1) == CPU and gpus == []


@pytest.mark.parametrize(
    "name, n_gpus, words",
    [("cuda", 1, "2 processes for 1 GPUs"), ("cuda:1", 2, "can't share cuda:1"),
     ("mps", 0, "can't share mps")],
)  # fmt: skip
def test_devices_that_ranks_can_not_have(gpus, monkeypatch, name, n_gpus, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    with pytest.raises(UserError, match=words):
        ranks._device_of_rank(name, 1)


@pytest.mark.parametrize("rank", [0, 1])
def test_another_rank_waits_before_it_says_what_was_wrong(monkeypatch, capsys, rank):
    """torchrun ends it meanwhile: one line, not one for each rank."""
    waited = []
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(cli.time, "sleep", waited.append)

    def main(options):
        raise UserError("wrong")

    with pytest.raises(SystemExit) as stop:
        cli.run(main, load_script(7).Options, [])
    assert stop.value.code == 2 and capsys.readouterr().err == "error: wrong\n"
    assert bool(waited) == (rank > 0)


@pytest.mark.parametrize("n_batches", [1, 3, 7])
def test_evaluation_is_shared_in_turns(n_batches):
    """All of three ranks work equally often, as a sharded model requires; each batch counts once,
    and the model is not in training meanwhile."""
    model, found, calls = nn.Linear(1, 1), [], []
    for rank in range(3):
        worked = []

        def work(batch, worked=worked):
            assert not model.training
            worked.append(batch)
            return batch

        found += evals.in_turns(model, [*range(n_batches)], work, Ranks(CPU, rank, 3))
        calls.append(len(worked))
    assert sorted(found) == [*range(n_batches)] and len(set(calls)) == 1
    assert model.training
