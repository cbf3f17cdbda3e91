"""Stage 1: Hugging Face's weights in and out, evaluation, sampling.

New here: common/tokenizer.py (text to ids), common/pretrained.py (weights), common/generate.py
(sampling), common/evals.py (loss, perplexity, bits per byte) and common/hellaswag.py (a test of
common sense). Read them in this order; skim the last.

    python 1_gpt2_hf_eval.py                  # OpenAI's 124M; half a minute
    python 1_gpt2_hf_eval.py --model FOLDER --prompt "To be" --temperature 0
    python 1_gpt2_hf_eval.py --export FOLDER  # our model, for transformers

You will see that our logits equal Hugging Face's to within 1e-5 of the largest logit, in fp32. Then
come the loss on Shakespeare and five continuations of the prompt. With --hellaswag, the script also
prints how often the model picks the right one of four endings. Without a network or a cached copy,
a random model of the same size takes its place, with a loss of about 11.0.
"""

from dataclasses import dataclass
from textwrap import fill

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from common.evals import evaluate
from common.generate import check_prompt, generate
from common.hellaswag import WORDINGS, hellaswag, print_scores, read_questions
from common.kit.cli import UserError, quoted, run
from common.kit.corpus import read_corpus
from common.kit.device import pick_device
from common.kit.hub import HubUnreachable, check_new_folder
from common.pretrained import convert, open_hugging_face, to_hugging_face
from common.tokenizer import gpt2_tokenizer


@dataclass
class Options:
    model: str = "gpt2"  # load this name from the Hub (gpt2, gpt2-xl, …) or this folder
    prompt: str = "Hello, I'm a language model,"  # continue this text
    samples: int = 5  # continue it this many times
    max_new_tokens: int = 30  # end each sample after this many tokens
    temperature: float = 1.0  # above 1 is more random, below 1 less; 0 is greedy
    top_k: int = 50  # sample from the k most probable tokens
    data: str = "tinyshakespeare"  # evaluate on this text: a name, a file or a folder
    eval_tokens: int = 8192  # evaluate on this many of its last tokens
    stride: int | None = None  # slide the window by this many tokens; by default, by its length
    batch_size: int = 4  # evaluate this many windows, or questions, at once
    hellaswag: bool = False  # ask HellaSwag's 10,042 questions too
    hellaswag_file: str | None = None  # read this hellaswag_val.jsonl; by default, download it
    hellaswag_limit: int | None = None  # ask only this many questions; by default, all
    export: str | None = None  # write our model to this new folder, in Hugging Face's format
    seed: int = 1337  # change it to draw other samples
    device: str = "auto"  # run on auto, cpu, cuda or mps


def reference_model(options: Options) -> GPT2LMHeadModel:
    """Hugging Face's model, from the Hub or a folder; offline, a random one of gpt2's size."""
    try:
        reference = open_hugging_face(options.model)
        print(f"model: {options.model}")
        return reference
    except HubUnreachable as error:
        if options.model != "gpt2" or options.export:
            raise UserError(f"{error}: try again, or give a folder as --model") from None
        instead = "a random GPT-2 of 124M takes the same test instead"
        print(fill(f"model: {error}: {instead}", 79, subsequent_indent="  "))
        return GPT2LMHeadModel(GPT2Config()).eval()


def compare(model, reference, ids: torch.Tensor) -> None:
    """Print the largest difference between our logits and Hugging Face's for ids (N,)."""
    with torch.no_grad():
        ours, theirs = model(ids[None])[0], reference(ids[None]).logits
    difference, largest = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    print(f"logits of {len(ids)} tokens: the largest difference from Hugging Face's is")
    print(f"  {difference:.1e}, or {difference / largest:.1e} of the largest logit ({largest:.2f})")
    if difference > 1e-5 * largest:
        raise AssertionError("the two models differ by more than fp32 rounding")


def main(options: Options) -> None:
    questions = None
    if options.hellaswag or options.hellaswag_file or options.hellaswag_limit:
        questions = read_questions(options.hellaswag_file, options.hellaswag_limit)
    if options.export:
        check_new_folder(options.export)
    device = pick_device(options.device)
    torch.manual_seed(options.seed)
    corpus = read_corpus(options.data)
    reference = reference_model(options)
    tokenizer = gpt2_tokenizer(reference.config.vocab_size)
    prompt = tokenizer.encode_ordinary(options.prompt)
    check_prompt(len(prompt), reference.config.n_positions)
    text_ids = torch.tensor(tokenizer.encode_ordinary(corpus.text)[-options.eval_tokens - 1 :])
    if len(text_ids) < 2:
        raise UserError(f"{options.data} has {len(text_ids)} tokens: give a longer text")

    model = convert(reference).to(device)
    block_size = model.config.block_size
    compare(model, reference.to(device), text_ids[: min(256, block_size)].to(device))
    del reference

    print(fill(f"text: the end of {corpus.name}, {corpus.source}", 79, subsequent_indent="  "))
    print(f"  windows of {block_size} tokens, stride {options.stride or block_size}")
    found = evaluate(model, text_ids, block_size, options.batch_size, options.stride)
    print(f"  {found}")
    if questions:
        print_scores(*(hellaswag(model, questions, w, options.batch_size) for w in WORDINGS))

    print(f"samples: {options.samples}, temperature {options.temperature:g}, top-k {options.top_k}")
    ids = torch.tensor([prompt] * options.samples, device=device)
    n_new = options.max_new_tokens
    for row in generate(model, ids, n_new, options.temperature, options.top_k, options.seed):
        print(quoted(tokenizer.decode(row.tolist())), end="\n\n")

    if options.export:
        facts = {"weights": options.model, f"on the end of {corpus.name}": found}
        to_hugging_face(model, options.export, facts)
        print(f"exported: transformers.pipeline('text-generation', model='{options.export}')")


if __name__ == "__main__":
    run(main, Options)

# To try:
#   python 1_gpt2_hf_eval.py --model gpt2-medium --data my_own.txt
#   python 1_gpt2_hf_eval.py --temperature 0 --samples 1
#   python 1_gpt2_hf_eval.py --top-k 1000 --temperature 1.5
#   python -m exercises 03 04 05    # yours to fill in: conv1d, top_k, bits_per_byte
