"""Generate the README's table of stages from the scripts.

python docs/readme_table.py            # rewrite it
python docs/readme_table.py --check    # exit code 1 if it would change
"""

import ast
import difflib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- stages: python docs/readme_table.py -->\n", "<!-- end of stages -->\n"
# Each script's default run, on the machine that the README names, with compiled code in the cache.
TIMES = "5 s, 28 s, 41 s, 42 s, 1.9 min, 1.9 min, 1.2 min, 4.2 min, 67 s, 1.3 min".split(", ")


def train_lines(path: Path) -> list[str] | None:
    """The lines of a script's `train`, without comments, docstring and blank lines."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == "train":
            node.body = node.body[ast.get_docstring(node) is not None :]
            return ast.unparse(node).splitlines()
    return None


def delta(one: Path, two: Path) -> tuple[int, int] | None:
    """How many lines of `train` script `two` removes from and adds to those of script `one`."""
    before, after = train_lines(one), train_lines(two)
    if before is None or after is None:
        return None
    lines = difflib.unified_diff(before, after, n=0, lineterm="")
    marks = [line[0] for line in lines if not line.startswith(("---", "+++"))]
    return marks.count("-"), marks.count("+")


def modules_of(new: str) -> list[str]:
    """Links to the modules that a docstring names: common/x.py, or x.py in the folder it names."""
    folder = re.search(r"in (common/\w+/)", new)
    names = re.findall(r"(common/)?\b(\w+\.py)\b", new)
    other = folder[1] if folder else "common/"
    return [f"[`{name}`]({in_root or other}{name})" for in_root, name in names]


def exercises_of(stage: int) -> str:
    """Links to the exercises whose docstring names the stage, by number."""
    links = []
    for path in sorted(ROOT.glob("exercises/[0-9]*.py")):
        number, of = re.match(r'"""Exercise (\d+), stage (\d):', path.read_text()).groups()
        links += [f"[{number}](exercises/{path.name})"] if int(of) == stage else []
    return ", ".join(links)


def table() -> str:
    heads = ["stage", "what it adds", "changed lines of `train`", "time", "exercises"]
    rows = [f"| {' | '.join(heads)} | new in `common/` |", "|---|---|--:|--:|---|---|"]
    paths = sorted(ROOT.glob("[0-9]_*.py"))
    for before, path in zip([None, *paths], paths, strict=False):
        stage, doc = int(path.name[0]), ast.get_docstring(ast.parse(path.read_text()))
        title = doc.split("\n")[0].split(": ", 1)[1].rstrip(".")
        new = doc.split("New here")[1].split("\n\n")[0]
        changed = delta(before, path) if 3 <= stage <= 7 else None
        changed = f"−{changed[0]} +{changed[1]}" if changed else ""
        cells = [f"[`{path.name}`]({path.name})", title, changed, TIMES[stage]]
        cells += [exercises_of(stage), ", ".join(modules_of(new))]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    readme = ROOT / "README.md"
    old = readme.read_text()
    before, rest = old.split(BEGIN)
    new = before + BEGIN + table() + END + rest.split(END)[1]
    if "--check" in sys.argv and new != old:
        sys.exit("README.md: the table of stages is out of date; run python docs/readme_table.py")
    readme.write_text(new)


if __name__ == "__main__":
    main()
