"""Many processes, one training run: torchrun starts and numbers them (ranks), each on its device.

With DistributedDataParallel every rank holds the full model, and an all-reduce averages their
gradients. With FSDP2, for models too large for one GPU, every rank holds a shard of each weight,
gradient and moment, and gathers a block's weights when it needs them. With a single process, none
of this does anything.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel

from common.init import tie_weights
from common.kit.cli import UserError
from common.kit.device import pick_device
from common.model import GPT, GPTConfig
from common.speed import compiled


@dataclass(frozen=True)
class Ranks:
    """This process's rank, and what the ranks do together. A method that communicates must be
    called on all ranks."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @contextlib.contextmanager
    def first(self) -> Iterator[None]:
        """One rank of each machine runs the block first; the others then find what it has
        downloaded."""
        if self.world_size > 1 and self.local_rank > 0:
            dist.barrier()
        try:
            yield
        finally:  # after an error too: the others then raise it themselves
            if self.world_size > 1 and self.local_rank == 0:
                dist.barrier()

    def from_main(self, work: Callable):
        """Call work() on rank 0 alone, and return its result on every rank. A UserError or OSError
        is raised on every rank."""
        result, error = None, None
        if self.is_main:
            try:
                result = work()
            except (UserError, OSError) as mistake:
                error = mistake
        if self.world_size > 1:
            result, error = self.gather((result, error))[0]
        if error:
            raise error
        return result

    def gather(self, value) -> list:
        """Every rank's value, in order of rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def agree(self, loss: torch.Tensor, norm: torch.Tensor, stop: bool) -> tuple:
        """The mean loss of all ranks, the gradient norm, and whether any rank was asked to stop.
        This is the only wait for the device in a step."""
        numbers = torch.stack((loss, torch.full_like(loss, stop), unsharded(norm)))
        if self.world_size > 1:
            dist.all_reduce(numbers[:2])  # the norm is of averaged gradients: the same on all
        loss, stopping, norm = numbers.tolist()
        return loss / self.world_size, norm, stopping > 0

    def exchanging(self, loss_of: Callable, now: bool):
        """A context for forward and backward: gradients are all-reduced if `now`, else they only
        accumulate on each rank. Sharded gradients are reduced each time, since unsharded ones would
        not fit."""
        wait = isinstance(loss_of, DistributedDataParallel) and not now
        return loss_of.no_sync() if wait else contextlib.nullcontext()

    @torch.no_grad()
    def fill(self, tensor: torch.Tensor, value: torch.Tensor | None) -> None:
        """Copy rank 0's value into every rank's tensor: the full value, or the rank's shard."""
        if not self.is_main:
            value = torch.empty(tensor.shape, dtype=tensor.dtype)
        value = value.to(self.device)
        assert value.shape == tensor.shape  # copy_ would broadcast a smaller one
        if is_sharded(tensor):
            from torch.distributed.tensor import distribute_tensor

            value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
        elif self.world_size > 1:
            dist.broadcast(value, src=0)
        tensor.copy_(value)

    @torch.no_grad()
    def full(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The opposite of fill: the full tensor on the CPU of rank 0, None on other ranks."""
        tensor = unsharded(tensor)
        return tensor.detach().cpu() if self.is_main else None

    def loss_function(self, model: GPT, compile: bool) -> Callable:
        """Like common.speed.loss_function, but backward averages gradients over the ranks."""
        loss_of = compiled(Loss(model)) if compile else Loss(model)
        if self.world_size == 1 or is_sharded(next(model.parameters())):
            return loss_of
        # torch compiles one graph per bucket: 5 for GPT-2 124M, 14 with the default of 25 MB.
        return DistributedDataParallel(loss_of, bucket_cap_mb=100)

    def shard(self, config: GPTConfig, weights: dict | None, dtype: torch.dtype | None) -> GPT:
        """A tied GPT sharded over the ranks, with rank 0's weights (None on the others). Apart from
        these, a rank holds no more than its shard and one full weight. With autocast to dtype,
        weights are gathered and the residual stream is in dtype; gradients are reduced in fp32."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # takes half a second

        mesh = dist.init_device_mesh(self.device.type, (self.world_size,))
        how = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(dtype, torch.float32)}
        with torch.device("meta"):
            model = tie_weights(GPT(config))
        for part in (*model.transformer.h, model):
            fully_shard(part, **how)
        tie_weights(model.to_empty(device=self.device))  # allocates the shards, untied
        for name, parameter in model.named_parameters():
            self.fill(parameter, weights and weights[name])
        return model


class Loss(nn.Module):
    """A model's loss as a module, as DistributedDataParallel needs it. It is computed outside the
    model, since only the blocks of a sharded model are compiled."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, x, y):
        logits = self.model(x)[0]
        return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether it is one of FSDP2's, a DTensor."""
    return hasattr(tensor, "full_tensor")  # importing the class would take half a second


def unsharded(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor, gathered on every rank; any other tensor unchanged."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@contextlib.contextmanager
def all_ranks(device_name: str) -> Iterator[Ranks]:
    """This process's Ranks, from the variables that torchrun sets; without them, a single rank.

    NCCL connects GPUs, gloo CPUs. Only rank 0 prints. Raises UserError for a missing device.
    """
    if "RANK" not in os.environ:
        device = pick_device(device_name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        yield Ranks(device)
        return
    rank, world_size, local_rank = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    )
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for as long as the process lives
    device = _device_of_rank(device_name, local_rank)
    backend, its_gpu = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    # One rank may tokenize a text, or save a checkpoint, while the others wait. Longer is a hang.
    dist.init_process_group(backend, timeout=timedelta(minutes=30), device_id=its_gpu)
    print(f"ranks: {world_size}, {backend}")
    try:
        yield Ranks(device, rank, world_size, local_rank)
    except UserError:  # raised on every rank; after another error this would wait for the others
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _device_of_rank(name: str, local_rank: int) -> torch.device:
    """One GPU for each rank of this machine, or the CPU for all. Raises UserError."""
    count, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if name == "mps" and count > 1 or name.startswith("cuda:"):
        raise UserError(f"{count} processes can't share {name}: give --device cuda or cpu")
    if name == "cuda" or (name == "auto" and gpus):
        if count > gpus:
            raise UserError(f"{count} processes for {gpus} GPUs: start {gpus} or take --device cpu")
        name = f"cuda:{local_rank}"
        torch.cuda.set_device(local_rank)
    return pick_device(name)
