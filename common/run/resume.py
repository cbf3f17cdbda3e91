"""A run's folder: create it, lock it, resume from its newest checkpoint, save into it."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import torch

from common.data import Tokens
from common.init import tie_weights
from common.kit.cli import UserError
from common.kit.disk import check_room, is_empty, locked, read_json, remove, run_folder, write_json
from common.model import GPT, GPTConfig
from common.presets import preset
from common.run import checkpoint
from common.run.batches import RankBatches
from common.run.export import facts
from common.run.ranks import Ranks
from common.run.recipes import run_config
from common.speed import Setting, build, narrow_residual, pad_vocab
from common.tokenizer import VOCAB_SIZE

BYTES_IN_CHECKPOINT, BYTES_IN_EXPORT = 12, 4  # per parameter: fp32, and at most two moments
# --restart deletes these, and replaces config.json last: it marks a folder that holds a run.
FILES = ("metrics.csv", "metrics.png", "checkpoints", "hf")


class Run:
    """A run in the folder --out. `saved` holds the newest checkpoint's texts, by name, and its
    `path`; before the first checkpoint, only `config`; nothing for a new run. Only rank 0 reads and
    writes; all ranks call the methods. Raises UserError for a folder that is in use, or has no run
    to resume."""

    def __init__(self, options, ranks: Ranks):
        self.folder, self.ranks, self.lock = Path(options.out).expanduser(), ranks, None
        self.saved = ranks.from_main(lambda: self._open(options))

    def _open(self, options) -> dict:
        folder = self.folder
        if options.resume and options.restart:
            raise UserError("--resume and --restart exclude each other: give one of them")
        if (folder / "config.json").exists():
            if not (options.resume or options.restart):
                hint = "--resume continues it, --restart deletes it, another --out keeps it"
                raise UserError(f"{folder} holds a run: {hint}")
            # Before a checkpoint is chosen: another process may be writing one.
            self.lock = self.lock or locked(folder)
        elif options.resume:
            raise UserError(f"{folder} holds no run: start one without --resume")
        elif folder.exists() and not (folder.is_dir() and is_empty(folder)):
            raise UserError(f"{folder} exists and holds no run: give another --out")
        if not options.resume:
            return {}
        config = read_json(folder / "config.json")  # of the last command, even if it was killed
        path = checkpoint.newest(folder / "checkpoints")
        if path:
            return checkpoint.read(path) | {"path": path, "config": config}
        print(f"{folder} has no checkpoint yet: starting at step 0")
        return {"config": config}

    def begin(self, options, model: GPT, text: str, questions: list | None) -> None:
        """Make the folder with the run's options, before its first step. text is the fingerprint of
        the data, questions are HellaSwag's. Raises UserError if --data is another text than the
        run's, or if the disk has no room for the checkpoints and the export."""
        self.text, self.questions = text, questions
        if (began := self.saved.get("state", {}).get("text", text)) != text:
            found = f"a text of {began}, and --data now has {text}"
            raise UserError(f"the run began with {found}: give the one that it began with")
        self.ranks.from_main(lambda: self._begin(options, model))

    def _begin(self, options, model: GPT) -> None:
        n_params = sum(p.numel() for p in model.parameters())
        n = options.keep + 2  # the best one, and the one that is being written
        need = (BYTES_IN_CHECKPOINT * n + BYTES_IN_EXPORT) * n_params
        check_room(self.folder, need, f"{n} checkpoints and the export")
        run_folder(options.out)
        self.lock = self.lock or locked(self.folder)
        if not options.resume:
            self._open(options)  # another process may have made a run here meanwhile
        if options.restart:
            for name in FILES:
                remove(self.folder / name)
        write_json(self.folder / "config.json", run_config(options))

    def model(self, options, setting: Setting) -> GPT:
        """The model on every rank: in full or, with --shard, a shard of it. Its weights are rank
        0's. A checkpoint's weights are restored later."""
        model = self._model_of_rank_0(options, setting) if self.ranks.is_main else None
        config = self.ranks.from_main(lambda: model.config)
        if options.shard:
            weights = model and dict(model.named_parameters())
            return self.ranks.shard(config, weights, setting.dtype)
        return narrow_residual(model or tie_weights(GPT(config)), setting).to(self.ranks.device)

    def _model_of_rank_0(self, options, setting: Setting) -> GPT:
        how = {"attention": setting.attention, "dropout": options.dropout}
        if "model" in self.saved:
            return tie_weights(GPT(GPTConfig(**self.saved["model"], **how)))
        if options.init_from:
            return pad_vocab(_pretrained(options, how))
        sizes = {"block_size": options.block_size, "vocab_size": options.vocab_size}
        without = replace(setting, residual=False)  # `model` narrows the residual stream itself
        return build(preset(options.model, **sizes, **how), without, options.seed)

    def restore(self, model: GPT, optimizer, scaler, batches: RankBatches) -> int:
        """Restore what `save` saved. Returns the step to resume at: 0 for a new run."""
        if "state" not in self.saved:
            return 0
        state = self.saved["state"]
        path = self.saved["path"]
        if not checkpoint.resume(path, state, model, optimizer, scaler, batches, self.ranks):
            print("new random generators: the run had fewer ranks, or another kind of device")
            seed = self.saved["config"]["seed"]
            torch.manual_seed(seed + self.ranks.rank + state["step"] * self.ranks.world_size)
        print(f"resumed from {path}")
        return state["step"]

    def check(self, step: int, loss: float, norm: float, scaler) -> None:
        """Raises UserError before an update that would ruin the weights. With fp16 a gradient may
        overflow: the scaler then skips the step."""
        if not math.isfinite(loss + (0 if scaler.is_enabled() else norm)):
            how = "--resume" if (self.folder / "checkpoints").exists() else "start another run"
            found = f"step {step} was not taken: its loss is {loss}, its gradient norm {norm}"
            raise UserError(f"{found}: {how} with a lower --lr or --clip, or more --warmup-steps")

    def save(
        self, step: int, model: GPT, optimizer, scaler, batches, options, best: Path | None
    ) -> None:
        """Write a checkpoint after this many steps. The best one before it stays."""
        texts = {"state": {"step": step, "text": self.text}, "config": run_config(options)}
        how = (options.keep, self.ranks, best)
        path = checkpoint.save(self.folder, texts, model, optimizer, scaler, batches, *how)
        print(f"saved: {path}")

    def export(self, step: int, options) -> None:
        """Export the checkpoint after this many steps to the folder's hf/."""
        self.ranks.from_main(lambda: self._export(step, options))

    def _export(self, step: int, options) -> None:
        from common.pretrained import export  # transformers takes seconds to import

        model = checkpoint.load_model(checkpoint.path_of(self.folder / "checkpoints", step))
        model.config = replace(model.config, dropout=options.dropout)
        export(model, self.folder, facts(self.folder, run_config(options), step))


def _pretrained(options, how: dict) -> GPT:
    """A tied GPT with the weights of a Hub name or a folder. Raises UserError."""
    from common.pretrained import from_hugging_face  # takes seconds to import

    name, T = options.init_from, options.block_size
    pretrained = from_hugging_face(name)
    if (found := min(pretrained.config.vocab_size, VOCAB_SIZE)) != options.vocab_size:
        raise UserError(f"{name} has {found} tokens: give --vocab-size {found}")
    if not torch.equal(pretrained.lm_head.weight, pretrained.transformer.wte.weight):
        raise UserError(f"{name} has an untied head: give a tied GPT-2")
    if T > (limit := pretrained.config.block_size):
        raise UserError(f"--block-size {T} is more than the {limit} of {name}")
    model = tie_weights(GPT(replace(pretrained.config, **how)))
    model.load_state_dict(pretrained.state_dict())
    return model


def fingerprint(tokens: Tokens) -> str:
    """Tells texts apart by their length, start and end, without reading them whole."""
    ids = tokens.train
    ends = b"".join(part.astype("<u2").tobytes() for part in (ids[:4096], ids[-4096:]))
    return f"{len(ids)} tokens, {hashlib.sha256(ends).hexdigest()[:16]}"
