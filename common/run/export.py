"""Export a checkpoint of stage 7 to a folder that transformers loads.

    python -m common.run.export runs/7_long_run FOLDER     # its newest checkpoint
    python -m common.run.export runs/7_long_run/checkpoints/step_00000200 FOLDER

Nothing is trained. The model card in the folder has the run's options and the losses from its log.
"""

import csv
import shlex
from dataclasses import dataclass
from pathlib import Path

from common.kit.cli import UserError, run
from common.kit.hub import check_new_folder
from common.run import checkpoint
from common.run.recipes import DEFAULTS, FINE_TUNING, RECIPES

# Titles in the card, and columns of metrics.csv.
COLUMNS = {
    "training loss": "loss",
    "validation loss": "val_loss",
    "bits per byte": "bits_per_byte",
}


@dataclass
class Options:
    run: str  # a run's folder, or one of its checkpoints
    folder: str  # the new folder to write, in Hugging Face's format


def facts(folder: Path, config: dict, step: int) -> dict[str, object]:
    """What a model card says about the run in `folder` after this many steps, from its options and
    its log."""
    tuned = bool(config.get("init_from"))
    usual_recipe = "fine-tuning" if tuned else "laptop"
    # A reader of the card has neither this TOML file nor our folders, so its options are listed.
    recipe = config["recipe"] if config["recipe"] in RECIPES else usual_recipe
    config = config | {"recipe": recipe, "data": Path(config["data"]).name}
    usual = {"recipe": usual_recipe} | DEFAULTS | RECIPES[recipe] | (FINE_TUNING if tuned else {})
    command = ["python", "7_gpt2_train_long_run.py"]
    for name, value in config.items():
        if value not in (None, usual.get(name)):
            command += [f"--{name.replace('_', '-')}", str(value)]
    tokens = f"{step:,} of {config['total_batch_tokens']:,} tokens"
    found = {"command": shlex.join(command), "data": config["data"], "steps": tokens}
    log = folder / "metrics.csv"
    for row in csv.DictReader(log.read_text(errors="replace").splitlines() if log.exists() else []):
        for title, column in COLUMNS.items():
            if row.get(column) and int(row["step"]) <= step:
                found[title] = f"{float(row[column]):.4f} at step {int(row['step']):,}"
    return found


def main(options: Options) -> None:
    path = Path(options.run).expanduser()
    if not (path / "manifest.json").exists():
        path = checkpoint.newest(path / "checkpoints")
    if path is None:
        hint = "give a run of stage 7, or one of the folders in its checkpoints/"
        raise UserError(f"{options.run} has no checkpoint: {hint}")
    if reason := checkpoint.why_damaged(path):
        raise UserError(f"{path} is damaged: {reason}")
    check_new_folder(options.folder)
    texts = checkpoint.read(path)
    if not {"recipe", "data", "total_batch_tokens"} <= texts["config"].keys():
        raise UserError(f"{path} is no checkpoint of stage 7: give one of its runs")
    told = facts(path.absolute().parents[1], texts["config"], texts["state"]["step"])
    from common.pretrained import to_hugging_face  # transformers takes seconds to import

    to_hugging_face(checkpoint.load_model(path), options.folder, told)
    print(f"exported: {path}\n  to try it: python 1_gpt2_hf_eval.py --model {options.folder}")


if __name__ == "__main__":
    run(main, Options)
