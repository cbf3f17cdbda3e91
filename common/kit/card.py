"""A model's card: the README.md in its folder, which the Hugging Face Hub shows."""

import shlex
import sys
from pathlib import Path


def card(title: str, facts: dict[str, object]) -> str:
    """The card's text, with one line per fact. The fact "command" is the command that made the
    model: by default, this process's own."""
    own = shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    facts = {"command": own} | facts
    command = facts.pop("command")
    lines = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
---

# {title}

{lines}

Made by

```sh
{command}
```

To try it, with the name of this folder or of its repository on the Hub:

```python
from transformers import pipeline

print(pipeline("text-generation", model=FOLDER)("To be")[0]["generated_text"])
```
"""
