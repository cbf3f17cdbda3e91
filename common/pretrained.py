"""Hugging Face's weights into our GPT, and ours into a folder that `transformers` loads.

The names of the weights are the same. Two things differ: Hugging Face uses OpenAI's Conv1D, whose
matrices are the transpose of nn.Linear's, and it ties the head to the token embedding on loading.
"""

import os
import shutil
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

from common.kit.cli import UserError
from common.kit.disk import replace_folder
from common.model import GPT, GPTConfig
from common.tokenizer import VOCAB_SIZE, tokenizer_file

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# What our model computes. A model with another value would load, and then be wrong.
SUPPORTED = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


class HubUnreachable(Exception):
    """The Hub can't be reached, and nothing is cached. The text says why."""


def hugging_face_config(name_or_dir: str) -> GPT2Config:
    """The configuration behind a Hub name or in a local folder, before any weight is read.

    Raises HubUnreachable, and UserError for what is no GPT-2 that ours can compute.
    """
    folder = _folder(name_or_dir, ["config.json"])
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give a folder that transformers saved")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{folder}/config.json describes no model: {reason}") from None
    if config.model_type != "gpt2":
        raise UserError(f"{name_or_dir} is a {config.model_type} model: give a GPT-2 one")
    for field, value in (SUPPORTED | {"n_inner": 4 * config.n_embd}).items():
        found = getattr(config, field)
        if found != value and not (field == "n_inner" and found is None):
            raise UserError(f"{name_or_dir} has {field} {found}, not {value}: give a plain GPT-2")
    return config


def open_hugging_face(name_or_dir: str) -> GPT2LMHeadModel:
    """Hugging Face's own model, in fp32 on the CPU. Raises as hugging_face_config, and UserError
    for weights that do not load."""
    hugging_face_config(name_or_dir)
    folder = _folder(name_or_dir, ["config.json", "model*.safetensors*"])
    if not Path(name_or_dir).expanduser().is_dir() and not list(folder.glob("model*.safetensors")):
        raise HubUnreachable("no model.safetensors came, and none is cached")
    disable_progress_bar()  # reading from disk takes a second
    try:
        return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"the weights in {folder} do not load: {reason}") from None


def _folder(name_or_dir: str, patterns: list[str]) -> Path:
    """The local folder with a model's files, downloaded into Hugging Face's cache if need be."""
    path = Path(name_or_dir).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name_or_dir.startswith((".", "/", "~")) or name_or_dir.count("/") > 1:
        what = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{name_or_dir} {what}: give a Hub name, or a folder with a config.json")
    try:
        return Path(huggingface_hub.snapshot_download(name_or_dir, allow_patterns=patterns))
    except LocalEntryNotFoundError as error:
        raise HubUnreachable(str(error.__cause__ or error).split("\n")[0]) from None
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"the Hub has no model '{name_or_dir}' for you: {reason}") from None


def from_hugging_face(name_or_dir: str) -> GPT:
    """Our GPT with the weights of a Hub name or a local folder. Raises as open_hugging_face."""
    return convert(open_hugging_face(name_or_dir))


def convert(reference: GPT2LMHeadModel) -> GPT:
    """Our GPT with the weights of Hugging Face's module: same logits, its own copy of each."""
    c = reference.config
    model = GPT(GPTConfig(c.n_layer, c.n_head, c.n_embd, c.n_positions, c.vocab_size))
    model.load_state_dict(_transposed(reference.state_dict()))
    return model.eval()


def _transposed(state: dict) -> dict:
    """nn.Linear's matrices for Conv1D's, or the other way round."""
    return {k: v.t().contiguous() if k.endswith(CONV1D) else v for k, v in state.items()}


def as_hugging_face(model: GPT) -> GPT2LMHeadModel:
    """Hugging Face's module with a copy of model's weights, on the CPU. Ids beyond GPT-2's
    vocabulary are dropped, and the head is tied if it equals the token embedding."""
    c = model.config
    state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
    vocab_size = min(c.vocab_size, VOCAB_SIZE)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        state[name] = state[name][:vocab_size].clone()
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer,
        n_head=c.n_head, resid_pdrop=c.dropout, embd_pdrop=c.dropout, attn_pdrop=c.dropout,
        tie_word_embeddings=torch.equal(state["transformer.wte.weight"], state["lm_head.weight"]),
        eos_token_id=VOCAB_SIZE - 1, bos_token_id=VOCAB_SIZE - 1,
    )  # fmt: skip
    reference = GPT2LMHeadModel(config)
    reference.load_state_dict(_transposed(state))
    reference.loss_type = "ForCausalLM"  # which transformers would guess, with a warning
    return reference.eval()


class HuggingFace(torch.nn.Module):
    """as_hugging_face(model) with our forward, so that it can be trained by the same loop."""

    def __init__(self, model: GPT):
        super().__init__()
        self.theirs = as_hugging_face(model)

    def forward(self, idx, targets=None):
        out = self.theirs(idx, labels=targets, shift_labels=targets, use_cache=False)
        return out.logits, out.loss


def to_hugging_face(model: GPT, folder: str | os.PathLike) -> None:
    """Write as_hugging_face(model) and GPT-2's tokenizer as a folder that `transformers` loads
    without a network. Raises UserError if the folder is not empty."""
    folder = check_new_folder(folder)
    disable_progress_bar()
    as_hugging_face(model).save_pretrained(folder)
    (folder / "vocab.json").write_bytes(tokenizer_file("encoder.json"))
    (folder / "merges.txt").write_bytes(tokenizer_file("vocab.bpe"))


def export(model: GPT, folder: Path) -> None:
    """Write model as folder/hf, in place of an earlier one; whole or not at all."""
    partial = folder / ".hf.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        to_hugging_face(model, partial)
        replace_folder(partial, folder / "hf")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}/hf can't be written: {error}; make room") from None
    print(f"saved: {folder}/hf\n  to try it: python 1_gpt2_hf_eval.py --model {folder}/hf")


def check_new_folder(folder: str | os.PathLike) -> Path:
    """The folder to export into. Raises UserError if it is not empty, or can't be created."""
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder: export into a new one")
    above = next(path for path in folder.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{folder} can't be made in {above}: export into another folder")
    return folder
