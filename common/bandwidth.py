"""Stage 9's table: how fast tokens are decoded, and how much of the memory bandwidth that uses."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.nn.attention import sdpa_kernel

from common.generate import generate
from common.kit.measure import read_bandwidth, timed
from common.ladder import WARMUP_STEPS, Ladder, Rung
from common.model import GPT
from common.quantize import bytes_per_token
from common.speed import FOR_ANY_SHAPE, autocast_dtype, why_not_compile

TIE = 1e-4  # between two logits: fp32 rounds off about 1e-6 of them, which adds up in 12 layers


@dataclass
class DecodeRung(Rung):
    """A row of the table. Its ms are per step, a new token for each of B texts. The first step also
    reads the prompt."""

    B: int = 1  # texts decoded at once
    bytes_read: int = 0  # per step: weights and cache
    ids: list[list[int]] = field(default_factory=list)  # the new tokens of each text
    bits_per_byte: float | None = None  # of validation text, with this rung's weights
    bandwidth: float = 0.0  # share of the memory's, 0 to 1
    same_ids: float | None = None  # share of ids equal to rung 0's, before the first that differs

    def put(self, ids: torch.Tensor) -> None:
        """Record a new id for each text, and the time it took; or, the first time, that ids are the
        prompt. With `end`, this is what transformers' `generate` asks of a streamer."""
        next_ids = ids.flatten().tolist()  # waits for the device
        if self.ids:
            for row, i in zip(self.ids, next_ids, strict=True):
                row.append(i)
            self.ms.append((time.perf_counter() - self.start) * 1000)
        else:
            self.ids = [[] for _ in range(self.B)]
        self.start = time.perf_counter()

    def end(self) -> None:
        pass

    @property
    def timed(self) -> list[float]:
        """The middle 80 % of the times: of hundreds of tokens, some wait for other programs."""
        ms = sorted(self.ms[WARMUP_STEPS:])
        cut = len(ms) // 10
        return ms[cut : len(ms) - cut]

    @property
    def share(self) -> float:
        return self.bandwidth


class DecodeLadder(Ladder):
    """The rungs, each with its share of the memory's bandwidth, and checked against the first."""

    limit = "bandwidth"
    bar, bars, scale = "tokens_per_s", "new tokens/s (log scale)", "log"
    columns = f"{'1st':>7}{'memory':>7}{'same':>6}{'Δbits':>8}"

    def __init__(self, model: GPT, prompt: torch.Tensor):
        """For a model that continues a prompt (1, T)."""
        self.model, self.prompt = model, prompt
        self.bandwidth = read_bandwidth(prompt.device)
        print(f"memory: {self.bandwidth / 1e9:.1f} GB/s, a sum over 1 GB\n")
        self.begin(prompt.device)
        self.peaks["bytes/s"] = self.bandwidth

    def fastest(self, prefix: str = "") -> DecodeRung:
        """The fastest rung with B = 1 whose name begins with prefix."""
        rungs = [r for r in self.rungs if r.B == 1 and r.name.startswith(prefix)]
        return max(rungs, key=lambda rung: rung.tokens_per_s)

    def check(self, rung: DecodeRung, first: DecodeRung) -> str:
        rung.tokens_per_s = rung.B * 1000 / rung.median_ms
        rung.bandwidth = rung.bytes_read / rung.median_ms * 1000 / self.bandwidth
        rung.same_ids = share_of_ids(rung.ids, first.ids)
        if rung.dtype == first.dtype and rung.same_ids < 1 and not self.is_tie(rung, first):
            raise AssertionError(f"{rung.name}: other tokens than {first.name}'s in fp32")
        bits = rung.bits_per_byte
        change = f"{bits - first.bits_per_byte:+.4f}" if bits else ""
        return f"{rung.ms[0]:>7.0f}{rung.bandwidth:>7.0%}{rung.same_ids:>6.0%}{change:>8}"

    @torch.no_grad()
    def is_tie(self, rung: DecodeRung, first: DecodeRung) -> bool:
        """Whether rounding may decide the first token in which the two rungs differ."""
        n = round(rung.same_ids * min(len(rung.ids[0]), len(first.ids[0])))
        text = torch.tensor([first.ids[0][:n]], dtype=torch.int64, device=self.prompt.device)
        logits = self.model(torch.cat((self.prompt, text), dim=1))[0][0, -1]
        return logits.topk(2).values.diff().abs().item() < TIE


@torch.no_grad()
def whole_text(model: GPT, ids: torch.Tensor) -> Iterator[torch.Tensor]:
    """Decode as stage 1 does: yield the next ids (B, 1), endlessly."""
    while True:
        ids = generate(model, ids, 1, temperature=0)
        yield ids[:, -1:]


def share_of_ids(ids: list[list[int]], first: list[list[int]]) -> float:
    """The share of new tokens that equal the first rung's in all texts, up to the first difference.
    After that, their contexts differ."""
    n = min(len(ids[0]), len(first[0]))
    same = [all(row[k] == first[0][k] for row in ids) for k in range(n)]
    return [*same, False].index(False) / n


def cache_bytes_per_token(model) -> int:
    """The bytes of one token's keys and values in all layers, in fp32."""
    return model.config.n_layer * 2 * model.config.n_embd * 4


@torch.no_grad()
def hugging_face(theirs, ids: torch.Tensor, n: int, name: str, **options) -> DecodeRung:
    """Time transformers' own `generate`: n tokens after ids (1, T), greedily, with its cache."""
    rung = DecodeRung(name, f"transformers' {theirs.dtype}")
    rung.bytes_read = bytes_per_token(theirs)
    options |= {"attention_mask": torch.ones_like(ids), "streamer": rung}
    theirs.generate(ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, **options)
    return rung


def compare_hugging_face(ladder: DecodeLadder, model: GPT, ids: torch.Tensor, n: int) -> None:
    """Measure transformers' `generate` with the model's weights: in fp32, in 16 bits where they are
    native, and compiled, in the smaller of the two. On NVIDIA's GPUs `generate` itself
    compiles, with CUDA graphs."""
    from common.pretrained import as_hugging_face  # transformers takes seconds to import

    theirs, ours = as_hugging_face(model).to(ids.device), ladder.fastest()
    native = autocast_dtype(ids.device)
    for name, dtype in (("HF fp32", torch.float32), ("HF 16 bits", native)):
        if dtype:
            with sdpa_kernel(FOR_ANY_SHAPE):  # cuDNN would build a new plan for each length
                ladder.add(hugging_face(theirs.to(dtype), ids, n, name))
    if not why_not_compile(ids.device):
        theirs.to(native or torch.float32)
        if ids.device.type != "cuda":
            theirs.forward = torch.compile(theirs.forward)
        ladder.add(hugging_face(theirs, ids, n, "HF compiled", cache_implementation="static"))
    times = ours.tokens_per_s / ladder.fastest("HF").tokens_per_s
    print(f"{'':14} ours is {times:.2f} times as fast as Hugging Face's fastest")


def measure_first_again(ladder: DecodeLadder, model: GPT, ids: torch.Tensor) -> None:
    """Time every eighth token of rung 0 again, after the same texts."""
    first = ladder.rungs[0]
    again = DecodeRung("0 again", ids=first.ids, bytes_read=first.bytes_read)
    text = torch.cat((ids, torch.tensor(first.ids, device=ids.device)), dim=1)
    start = ids.size(1) + WARMUP_STEPS
    for T in [start] * WARMUP_STEPS + list(range(start, text.size(1), 8)):
        seconds, _ = timed(lambda T=T: generate(model, text[:, :T], 1, temperature=0), ids.device)
        again.ms.append(seconds * 1000)
    ladder.add_last(again)
