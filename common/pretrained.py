"""Hugging Face's weights into our GPT, and ours into a folder that `transformers` loads.

The names of the weights are the same. Two things differ. Hugging Face uses OpenAI's Conv1D, whose
matrices are the transpose of nn.Linear's. And its head is tied to the token embedding, while ours
gets a copy.
"""

import os
from pathlib import Path

import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
from transformers.utils.logging import disable_progress_bar

from common.kit.cli import UserError
from common.kit.disk import read_json, share, whole_folder
from common.kit.hub import card, check_new_folder, first_line, model_folder
from common.model import GPT, GPTConfig
from common.tokenizer import VOCAB_SIZE, token_ids, tokenizer_file

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
FIELDS = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "tie_word_embeddings")
# What our model computes. A model with another value would load, but compute wrong logits.
SUPPORTED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "n_inner": None,
}


def from_hugging_face(name_or_dir: str) -> GPT:
    """Our GPT with the weights of a Hub name or a local folder. Raises as open_hugging_face."""
    return convert(open_hugging_face(name_or_dir))


def convert(reference: GPT2LMHeadModel) -> GPT:
    """Our GPT with a copy of the weights of Hugging Face's module: the same logits."""
    c = reference.config
    model = GPT(GPTConfig(c.n_layer, c.n_head, c.n_embd, c.n_positions, c.vocab_size))
    model.load_state_dict(_transposed(reference.state_dict()))
    return model.eval()


def _transposed(state: dict) -> dict:
    """Conv1D's matrices to nn.Linear's, or the other way round."""
    return {k: v.t().contiguous() if k.endswith(CONV1D) else v for k, v in state.items()}


def as_hugging_face(model: GPT) -> GPT2LMHeadModel:
    """Hugging Face's module with a copy of model's weights, on the CPU. Ids beyond GPT-2's
    vocabulary are dropped, and the head is tied if it equals the token embedding."""
    c = model.config
    state = {k: v.cpu() for k, v in model.state_dict().items()}
    vocab_size = min(c.vocab_size, VOCAB_SIZE)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        state[name] = state[name][:vocab_size]
    config = GPT2Config(
        n_layer=c.n_layer,
        n_head=c.n_head,
        n_embd=c.n_embd,
        n_positions=c.block_size,
        n_ctx=c.block_size,
        vocab_size=vocab_size,
        bos_token_id=vocab_size - 1,
        eos_token_id=vocab_size - 1,
        resid_pdrop=c.dropout,
        embd_pdrop=c.dropout,
        attn_pdrop=c.dropout,
        tie_word_embeddings=torch.equal(state["transformer.wte.weight"], state["lm_head.weight"]),
    )
    reference = GPT2LMHeadModel(config)
    reference.load_state_dict(_transposed(state))
    reference.loss_type = "ForCausalLM"  # otherwise transformers guesses it, with a warning
    return reference.eval()


class HuggingFace(torch.nn.Module):
    """as_hugging_face(model) with our forward's signature, so that the same loop can train it."""

    def __init__(self, model: GPT):
        super().__init__()
        self.theirs = as_hugging_face(model)

    def forward(self, idx, targets=None):
        # labels asks for a loss, shift_labels says that the targets are shifted already.
        out = self.theirs(idx, labels=targets, shift_labels=targets, use_cache=False)
        return out.logits, out.loss


def to_hugging_face(model: GPT, folder: str | os.PathLike, facts: dict[str, object]) -> None:
    """Write as_hugging_face(model), GPT-2's tokenizer and a card of the facts as a folder that
    `transformers` loads without a network: completely or not at all. Raises UserError if the folder
    is not empty, or can't be written."""
    with whole_folder(check_new_folder(folder), "export into another folder") as partial:
        _write(model, partial, facts)


def _write(model: GPT, folder: Path, facts: dict[str, object]) -> None:
    disable_progress_bar()
    reference, T = as_hugging_face(model), model.config.block_size
    vocab_size = reference.config.vocab_size
    # Otherwise transformers would generate 256 tokens, even with a smaller block size.
    ends = dict.fromkeys(("eos_token_id", "bos_token_id", "pad_token_id"), vocab_size - 1)
    reference.generation_config = GenerationConfig(max_length=T, **ends)
    reference.save_pretrained(folder)
    merges = tokenizer_file("vocab.bpe").decode().splitlines()[1:]  # line 0 is the version
    pairs = [tuple(merge.split()) for merge in merges[: vocab_size - 257]]  # 257: bytes and end
    how = dict(model_max_length=T, clean_up_tokenization_spaces=False)
    GPT2Tokenizer(token_ids(vocab_size), pairs, **how).save_pretrained(folder)
    title = f"GPT-2 with {reference.num_parameters():,} parameters"
    (folder / "README.md").write_text(card(title, facts))
    share(folder)


def export(model: GPT, folder: Path, facts: dict[str, object]) -> None:
    """Write model to folder/hf, replacing an earlier one: completely or not at all."""
    with whole_folder(folder / "hf") as partial:
        _write(model, partial, facts)
    print(f"saved: {folder}/hf\n  to try it: python 1_gpt2_hf_eval.py --model {folder}/hf")


def hugging_face_config(name_or_dir: str) -> GPT2Config:
    """The config of a model on the Hub or in a local folder, before any weight is read. Raises
    HubUnreachable, and UserError for a model that our GPT can't compute."""
    given = read_json(model_folder(name_or_dir, "config.json") / "config.json")
    if "recipe" in given:  # the options of a run
        hint = "export a checkpoint: python -m common.run.export"
        raise UserError(f"{name_or_dir} is a run: give its hf/, written at its end, or {hint}")
    given = GPT2Config().to_dict() | {"model_type": None} | given
    if given["n_inner"] and given["n_inner"] == 4 * given["n_embd"]:
        given["n_inner"] = None  # the default
    for field, value in SUPPORTED.items():
        if given[field] != value:
            raise UserError(f"{name_or_dir} has {field} {given[field]}, not {value}: give a GPT-2")
    size, sizes = given["vocab_size"], {field: given[field] for field in FIELDS}
    end = min(size, VOCAB_SIZE) - 1
    if size < VOCAB_SIZE:
        tokenizer = read_json(model_folder(name_or_dir, "tokenizer.json") / "tokenizer.json")
        if tokenizer.get("model", {}).get("vocab") != token_ids(size):
            hint = "give a model with GPT-2's vocabulary"
            raise UserError(f"{name_or_dir} has {size} ids that are not GPT-2's first ones: {hint}")
    return GPT2Config(**sizes, bos_token_id=end, eos_token_id=end)


def open_hugging_face(name_or_dir: str) -> GPT2LMHeadModel:
    """Hugging Face's own model, in fp32 on the CPU. Raises as hugging_face_config, and UserError
    for weights that do not load. Pickled weights are not loaded: they could run any code."""
    config = hugging_face_config(name_or_dir)
    folder = model_folder(name_or_dir, "config.json", "model*.safetensors*")
    disable_progress_bar()  # reading from disk takes a second
    how = dict(dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    try:
        model, info = GPT2LMHeadModel.from_pretrained(folder, config=config, **how)
        if missing := info["missing_keys"]:  # transformers would draw them at random
            raise ValueError(f"{min(missing)} is missing")
    except Exception as error:  # of any kind: the files are not ours
        raise UserError(f"the weights in {folder} do not load: {first_line(error)}") from None
    return model.eval()
