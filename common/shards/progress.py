"""What progress.json holds: how far a run has come, and whether we wrote it."""

import re
from dataclasses import dataclass, field

SPLITS = ("val", "train")
NAME = re.compile(r"(train|val)_\d{6}\.npy")
OURS = re.compile(rf"\.?{NAME.pattern}(\.partial)?|progress\.json|\.lock")
# What damage to a file of ours can raise where it is read.
DAMAGED = (OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError)


@dataclass
class Progress:
    """How far a run has come: what progress.json holds."""

    made_from: dict  # the source and the options
    state: dict = field(default_factory=lambda: {"file": 0, "inside": 0})  # see Batch
    texts: int = 0  # documents, or pieces of one
    documents: int = 0
    empty: int = 0
    # of each split: the index of the shard to write into, and the tokens in it
    begun: dict = field(default_factory=lambda: {"val": [0, 0], "train": [1, 0]})
    shards: list = field(default_factory=list)  # the complete ones: name, tokens, sha256

    def check(self) -> None:
        """Raises ValueError, LookupError or TypeError for what we would not have written."""
        begun = [self.begun[split] for split in SPLITS]
        numbers = [self.texts, self.documents, self.empty, *(n for pair in begun for n in pair)]
        numbers += [self.state["file"], self.state["inside"], *(s["tokens"] for s in self.shards)]
        if not (
            all(type(n) is int and 0 <= n < 2**63 for n in numbers)
            and all(NAME.fullmatch(shard["name"]) for shard in self.shards)
            and all(count < self.made_from["shard_tokens"] for _, count in begun)
            and self.state["file"] < len(self.made_from["files"])
            and len(self.begun) == len(SPLITS)
        ):
            raise ValueError
