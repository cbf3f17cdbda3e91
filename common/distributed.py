"""Many processes, one training run: torchrun starts them, each has a rank and a device of its own.

Two ways to share the work. Replicated (DistributedDataParallel): every rank holds the whole model
and the ranks exchange gradients. Sharded (FSDP2): every rank holds a slice of each weight, gradient
and moment, and gathers a block's weights when it comes to that block: for models too large for one
GPU. With one process all of this is the identity.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from common.cli import UserError
from common.device import pick_device
from common.init import tie_weights
from common.model import GPT, GPTConfig


@dataclass(frozen=True)
class Ranks:
    """Who this process is among all of them, and what they do together. Every method that sends
    something must be called on all ranks."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """One rank a machine goes through the block before the others: what it downloads, they
        find."""
        if self.world_size > 1 and self.local_rank > 0:
            dist.barrier()
        yield
        if self.world_size > 1 and self.local_rank == 0:
            dist.barrier()

    def from_main(self, work: Callable):
        """What work returns on rank 0, where alone it is called."""
        result = [work() if self.is_main else None]
        if self.world_size > 1:
            dist.broadcast_object_list(result, src=0)
        return result[0]

    def gather(self, value) -> list:
        """Every rank's value, in order of rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace tensor by its sum over all ranks."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum(self, number: float) -> float:
        """The sum of a number over all ranks."""
        return sum(self.gather(number))

    def exchanging(self, module: nn.Module, now: bool):
        """A context for forward and backward: gradients are exchanged if `now`, else they only add
        up on each rank. Sharded ones are exchanged each time: put off, every rank would hold them
        whole, which is what sharding is to avoid."""
        wait = isinstance(module, DistributedDataParallel) and not now
        return module.no_sync() if wait else contextlib.nullcontext()

    @torch.no_grad()
    def fill(self, tensor: torch.Tensor, value: torch.Tensor | None) -> None:
        """Give every rank's tensor the value that rank 0 has: all of it, or the rank's slice."""
        if not self.is_main:
            value = torch.empty(tensor.shape, dtype=tensor.dtype)
        value = value.to(self.device)
        if isinstance(tensor, DTensor):
            value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
        elif self.world_size > 1:
            dist.broadcast(value, src=0)
        tensor.copy_(value)

    @torch.no_grad()
    def whole(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The opposite of fill: on rank 0 all of the tensor, on the CPU; on other ranks None."""
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        return tensor.detach().cpu() if self.is_main else None

    def replicate(self, module: nn.Module) -> nn.Module:
        """The module with rank 0's weights on every rank, its gradients averaged over them."""
        if self.world_size == 1:
            return module
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def shard(self, config: GPTConfig, weights: dict[str, torch.Tensor] | None) -> GPT:
        """A tied GPT in slices, with the weights that rank 0 has (None on the others). Memory never
        holds more than a slice of the model and one whole block, but for rank 0's weights."""
        mesh = init_device_mesh(self.device.type, (self.world_size,))
        with torch.device("meta"):
            model = GPT(config)
        parts = model.transformer
        for block in parts.h:
            fully_shard(block.to_empty(device=self.device), mesh=mesh)
        for part in (parts.wte, parts.wpe, parts.ln_f, model.lm_head):
            part.to_empty(device=self.device)
        model = fully_shard(tie_weights(model), mesh=mesh)
        for name, parameter in model.named_parameters():
            self.fill(parameter, weights and weights[name])
        return model


@contextlib.contextmanager
def all_ranks(device_name: str) -> Iterator[Ranks]:
    """This process's Ranks, from the variables that torchrun sets; without them it is alone.

    NCCL connects GPUs, gloo CPUs. All ranks but 0 are silent. Raises UserError for a device that
    is not there.
    """
    if "RANK" not in os.environ:
        device = pick_device(device_name)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # generators are asked for without naming a device
        yield Ranks(device)
        return
    rank, world_size, local_rank = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    )
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for as long as the process lives
    device = _device_of_rank(device_name, local_rank)
    backend, its_gpu = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    # One rank may tokenize a large text, or write 100 GB, while the others wait.
    dist.init_process_group(backend, timeout=timedelta(hours=2), device_id=its_gpu)
    print(f"ranks: {world_size}, {backend}")
    yield Ranks(device, rank, world_size, local_rank)
    dist.destroy_process_group()


def _device_of_rank(name: str, local_rank: int) -> torch.device:
    """A GPU for each rank of this machine, or its CPU for all of them. Raises UserError."""
    count, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if name == "mps" and count > 1 or name.startswith("cuda:"):
        raise UserError(f"{count} processes can't share {name}: give --device cuda or cpu")
    if name == "cuda" or (name == "auto" and gpus):
        if count > gpus:
            raise UserError(f"{count} processes for {gpus} GPUs: give --nproc_per_node {gpus}, or "
                            "--device cpu")  # fmt: skip
        name = f"cuda:{local_rank}"
        torch.cuda.set_device(local_rank)
    return pick_device(name)


class StopSignal:
    """Within the `with` block, SIGTERM or a first Ctrl-C sets `asked`; a second Ctrl-C is a
    KeyboardInterrupt again."""

    def __enter__(self):
        self.asked = False
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number, _frame):
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        note = f"\n{signal.Signals(number).name}: finishing this step; Ctrl-C again ends at once\n"
        os.write(2, note.encode())  # print is not safe in a handler
