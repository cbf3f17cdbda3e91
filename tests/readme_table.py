"""Write the README's table of stages from the scripts' own docstrings.

python tests/readme_table.py            # rewrite it
python tests/readme_table.py --check    # exit code 1 if it would change
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- stages: python tests/readme_table.py -->\n", "<!-- end of stages -->\n"


def table() -> str:
    rows = ["| stage | what it adds | new in `common/` |", "|---|---|---|"]
    for path in sorted(ROOT.glob("[0-9]_*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text()))
        title = doc.split("\n")[0].split(": ", 1)[1]
        new = " ".join(doc.split("New here:")[1].split("\n\n")[0].split())
        modules = ", ".join(f"`{name}`" for name in re.findall(r"common/(\w+\.py)", new))
        rows.append(f"| [`{path.name}`]({path.name}) | {title} | {modules or '–'} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    readme = ROOT / "README.md"
    old = readme.read_text()
    before, rest = old.split(BEGIN)
    new = before + BEGIN + table() + END + rest.split(END)[1]
    if "--check" in sys.argv and new != old:
        sys.exit("README.md: the table of stages is out of date; run python tests/readme_table.py")
    readme.write_text(new)


if __name__ == "__main__":
    main()
