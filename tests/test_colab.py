"""The notebook, on a CPU, with tiny options. It is slow, and needs packages that nothing else does:
pip install nbclient ipykernel && pytest -m slow tests/test_colab.py"""

import json
import re
import sys

import pytest
from conftest import ROOT

# What is added to the command of each script that the notebook runs.
TINY = {
    5: "--model 1x2x16 --batch-size 2 --block-size 32 --rungs 0 1 --steps 4 --eval-tokens 64",
    6: "--model 1x2x16 --steps 3 --warmup-steps 1 --compile no",
    9: "--max-new-tokens 4",
}


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, text_file):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    text = (ROOT / "colab.ipynb").read_text()
    notebook = nbformat.reads(text, as_version=4)
    commands = re.findall(r"!python (\d)_(\w+\.py)", text)
    assert [int(stage) for stage, _ in commands] == list(TINY)
    for cell in notebook.cells:
        # Nothing is installed, and the scripts run from another folder.
        cell.source = cell.source.replace("%pip install", "%pip --version #")
        if command := re.fullmatch(r"!python ((\d)_\S+) (.*)", cell.source):
            name, stage, options = command[1], int(command[2]), command[3]
            data = "" if stage == 9 else f"--data {text_file}"
            cell.source = f"!{sys.executable} {ROOT / name} {options} {TINY[stage]} {data}"
    (tmp_path / "requirements.txt").touch()  # as if this were the course's own folder
    how = {"resources": {"metadata": {"path": str(tmp_path)}}, "timeout": 300}
    nbclient.NotebookClient(notebook, kernel_name="python3", **how).execute()
    outputs = json.dumps(notebook)
    assert "Traceback" not in outputs and "error: " not in outputs
    assert outputs.count("image/png") == 2  # the ladder, and the training
    assert "ROMEO:" in str(notebook.cells[-1].outputs)
