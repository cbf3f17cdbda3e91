"""Stage 9: a ladder of decoding speed, and a model to talk to.

New here: common/decode.py (a KV cache), common/quantize.py (weights of 16 and 8 bits) and
common/talk.py (streaming text). Read them in this order; common/bandwidth.py prints the table.

    python 9_gpt2_generate_speedup.py     # the ladder: 1.5 minutes on two cores
    python 9_gpt2_generate_speedup.py --model runs/7_long_run --prompt "ROMEO:"
    python 9_gpt2_generate_speedup.py --model gpt2 --interactive

The first command continues the same prompt on every rung, one row per rung. Each rung adds to the
ones before, with two exceptions: 8 bits replace 16; and batches use 16 bits (32 where the device
lacks them) and, on a CPU, are not compiled. A new token takes few operations but reads all weights,
so memory bandwidth limits how fast it can be. Each row has the median time of a step and its spread
(half the range of the middle 80 % of the steps), tokens/s, the time to the first token in ms (1st),
the share of the memory bandwidth (memory), the share of tokens before the first that differs from
rung 0's (same), and the change in bits per byte of validation text (Δbits). Then come Hugging
Face's `generate` and rung 0 again.

The other two commands stream text. With --interactive you type a line at a time, and the model
continues all the text so far (without your Enter). Ctrl-C ends an answer, Ctrl-D the session.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from textwrap import fill
from typing import Literal

import torch

from common.bandwidth import (
    DecodeLadder,
    DecodeRung,
    cache_bytes_per_token,
    compare_hugging_face,
    measure_first_again,
    whole_text,
)
from common.data import load_tokens
from common.decode import Decoder, FixedCache, GrowingCache, compiled_step, decode
from common.evals import evaluate
from common.generate import check_prompt
from common.kit.cli import UserError, run
from common.kit.device import pick_device, release_memory
from common.kit.disk import check_json, run_folder
from common.kit.hub import HubUnreachable
from common.ladder import WARMUP_STEPS
from common.model import GPT
from common.presets import preset
from common.quantize import bytes_per_token, quantized
from common.run import checkpoint
from common.speed import Setting, autocast_dtype, build, why_not_compile
from common.talk import Voice, converse
from common.tokenizer import gpt2_tokenizer

PROMPT = "Hello, I'm a language model,"  # of the ladder


@dataclass
class Options:
    model: str = "gpt2"  # load a Hub name, a folder in its format, or a run of stage 6 or 7
    prompt: str | None = None  # continue this text; by default, climb the ladder
    interactive: bool = False  # continue each line that you type
    max_new_tokens: int = 256  # end a text, or an answer, after this many tokens
    stop: str | None = None  # end before this text; by default, only at <|endoftext|>
    samples: int = 1  # continue the prompt this many times
    temperature: float = 0.8  # above 1 is more random, below 1 less; 0 is greedy
    top_k: int = 50  # sample from the k most probable tokens
    top_p: float = 1.0  # keep the fewest of those whose probabilities add up to p
    compile: Literal["auto", "yes", "no"] = "auto"  # with 8- or 16-bit weights; auto: for long text
    seed: int = 42  # change it to draw other samples
    device: str = "auto"  # run on auto, cpu, cuda or mps
    # the ladder of speed
    rungs: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)  # measure these, and 0
    data: str = "tinyshakespeare"  # measure bits per byte on its validation text
    eval_tokens: int = 512  # use this many tokens of it
    out: str = "runs/9_generate"  # write to this folder
    json: str | None = None  # also write all numbers to this file; by default, to none


def open_model(name: str, seed: int) -> GPT:
    """The model of a Hub name or a folder, or the newest weights in a run's folder. Without a
    network a random GPT-2 replaces gpt2: its speed is the same."""
    folder = Path(name).expanduser()
    exported = folder / "hf" / "config.json"
    saved = checkpoint.newest(folder / "checkpoints")
    if saved and not (exported.exists() and exported.stat().st_mtime > saved.stat().st_mtime):
        print(f"model: {saved}")
        return checkpoint.load_model(saved)
    from common.pretrained import from_hugging_face  # transformers takes seconds to import

    name = str(exported.parent) if exported.exists() else name
    try:
        model = from_hugging_face(name)
        print(f"model: {name}")
        return model
    except HubUnreachable as error:
        if name != "gpt2":
            raise
        why = f"model: {error}: a random GPT-2 of 124M replaces it, with the same speed"
        print(fill(why, 79, subsequent_indent="  "))
        return build(preset("gpt2"), Setting(), seed)


@dataclass(frozen=True)
class Way:
    """How a rung decodes. The defaults decode as stage 1 does."""

    cache: Callable | None = None
    compile: bool = False
    bits: int = 32  # of a weight
    B: int = 1  # texts at once


def speedups(device: torch.device) -> list[tuple]:
    """The name of each rung, what it changes, and why."""
    # A batch is limited by arithmetic, not bandwidth. So 16 bits pay off only where the device
    # multiplies them natively, and on a CPU compiling gains nothing.
    batch = {"bits": 16 if autocast_dtype(device) else 32, "compile": device.type != "cpu"}
    return [
        ("whole text", {}, "stage 1: read the whole text again for each token"),
        ("cache", {"cache": GrowingCache}, "keep keys and values: read each token once"),
        ("fixed cache", {"cache": FixedCache}, "no copies, and shapes that never change"),
        ("compile", {"compile": True}, "one compiled function per step, with sampling"),
        ("16 bits", {"bits": 16}, "half the bytes to read"),
        ("8 bits", {"bits": 8}, "a quarter of the bytes"),
        ("batch of 8", {**batch, "B": 8}, "8 tokens each time the weights are read"),
        ("batch of 64", {"B": 64}, "now arithmetic is the limit"),
    ]


def small(model: GPT, bits: int) -> GPT:
    """A copy of the model whose nn.Linear are RowLinear, with weights of this many bits."""
    native = autocast_dtype(next(model.parameters()).device)
    dense = torch.float32 if bits == 32 else native or torch.float32
    return quantized(model, bits, native or torch.bfloat16, dense)


def measure(name: str, way: Way, model: GPT, ids, val, n: int) -> DecodeRung:
    """Decode n new tokens after ids (1, T)."""
    rung = DecodeRung(name, "float32" if way.bits == 32 else f"{way.bits} bits", B=way.B)
    ids, S = ids.expand(way.B, -1), ids.size(1) + n
    if way.compile or way.bits < 32:  # in fp32 too: RowLinear compiles to one loop per matrix
        model = small(model, way.bits)
    if way.cache:
        decoder = Decoder(model, way.B, S, way.cache, temperature=0)
        tokens = decode(decoder, ids, step=compiled_step(decoder) if way.compile else None)
    else:
        tokens = whole_text(model, ids)
    for next_ids in chain([ids], islice(tokens, n)):
        rung.put(next_ids)
    in_cache = {FixedCache: S, GrowingCache: S - n // 2}.get(way.cache, 0)  # tokens, on average
    rung.bytes_read = bytes_per_token(model) + way.B * in_cache * cache_bytes_per_token(model)
    if way.bits < 32 or not way.cache:  # new weights, or the first rung
        rung.bits_per_byte = evaluate(model, val, model.config.block_size).bits_per_byte
    return rung


def climb(ladder: DecodeLadder, model: GPT, ids: torch.Tensor, val, n: int, rungs: tuple) -> None:
    """Measure the rungs, n new tokens each, then Hugging Face's `generate`, and rung 0 again."""
    way, previous = Way(), None
    reason = why_not_compile(ids.device) if max(rungs) >= 3 else None  # rung 3 compiles
    for k, (name, change, _) in enumerate(speedups(ids.device)):
        if k > max(rungs):
            break
        if reason and replace(way, **change).compile:
            ladder.skip(f"{k} {name}", reason)
            continue
        way = replace(way, **change)
        if k == 0 or k in rungs:
            n_here = n if way.B == 1 else min(n, 32)  # a batch takes longer per step,
            n_here = n // 2 if k == 0 else n_here  # and so does rung 0
            rung = measure(f"{k} {name}", way, model, ids, val, max(n_here, WARMUP_STEPS + 1))
            release_memory()
            ladder.add(rung, previous)
            previous = rung
    compare_hugging_face(ladder, model, ids, min(n, 32))
    measure_first_again(ladder, model, ids)


def show_ladder(model: GPT, options: Options, device: torch.device) -> None:
    """Print the ladder, and save its picture."""
    vocab_size = model.config.vocab_size
    prompt = gpt2_tokenizer(vocab_size).encode_ordinary(PROMPT)
    n = min(options.max_new_tokens, model.config.block_size - len(prompt))
    if n <= WARMUP_STEPS:
        hint = "give a larger --max-new-tokens, or a model with a larger block size"
        raise UserError(f"{n} new tokens are too few to time: {hint}")
    val = load_tokens(options.data, vocab_size).val[: options.eval_tokens].astype("int64")
    folder = run_folder(options.out)
    print(f"greedy: {n} new tokens after a prompt of {len(prompt)}; rung 0 decodes half of them")
    for k, (name, _, why) in enumerate(speedups(device)):
        print(f"  {k} {name:<12} {why}")
    ids = torch.tensor([prompt], device=device)
    ladder = DecodeLadder(model, ids)
    title = f"{options.model}, {n} new tokens"
    with ladder.saved(folder / "ladder.png", options.json, title):
        climb(ladder, model, ids, torch.from_numpy(val), n, options.rungs)


def voice(model: GPT, S: int, options: Options) -> Voice:
    """The model, ready to continue texts of up to S tokens; compiled if that pays."""
    device = next(model.parameters()).device
    long = options.interactive or options.samples * options.max_new_tokens >= 1000
    if options.compile == "auto" and not long:
        why_eager = "few tokens; --compile yes compiles"
    else:
        why_eager = "as asked" if options.compile == "no" else why_not_compile(device)
    sampling = (options.temperature, options.top_k, options.top_p)
    bits = 8 if device.type == "cpu" else 16  # the fastest on two cores, and on an H100
    decoder = Decoder(model if why_eager else small(model, bits), 1, S, FixedCache, *sampling)
    step = None
    if not why_eager:
        print("compiling, which takes about half a minute; --compile no skips it")
        step, ids = compiled_step(decoder), torch.zeros(1, 1, dtype=torch.int64, device=device)
        list(islice(decode(decoder, ids, step=step), 2))  # compile now, not within an answer
    how = f"eager, fp32 ({why_eager})" if why_eager else f"compiled, weights of {bits} bits"
    print(f"decoding: {how}")
    return Voice(decoder, step, options.max_new_tokens, options.stop)


def main(options: Options) -> None:
    if not options.rungs or not set(options.rungs) <= set(range(8)):
        raise UserError(f"--rungs {' '.join(map(str, options.rungs))}: give some of 0 to 7")
    check_json(options.json)
    device = pick_device(options.device)
    torch.manual_seed(options.seed)
    model = open_model(options.model, options.seed).to(device).eval()
    block_size, tokenizer = model.config.block_size, gpt2_tokenizer(model.config.vocab_size)
    n_prompt = len(tokenizer.encode_ordinary(options.prompt or ""))
    check_prompt(n_prompt, block_size)
    if options.interactive:
        import readline  # noqa: F401  # editing and history for input()

        converse(voice(model, block_size, options), options.seed, options.prompt or "")
    elif options.prompt is not None:
        speaker = voice(model, min(block_size, n_prompt + options.max_new_tokens), options)
        for k in range(options.samples):
            print(options.prompt, end="")
            for piece in speaker.continue_text(options.prompt, options.seed + k):
                print(piece, end="", flush=True)
            print()
    else:
        show_ladder(model, options, device)


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 9_gpt2_generate_speedup.py --rungs 1 5 --max-new-tokens 100
#   python 9_gpt2_generate_speedup.py --model runs/6_hyparam --prompt "KING:" --stop $'\n\n'
#   python -m exercises 16    # yours to fill in: kv_cache
