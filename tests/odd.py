"""JSON that nobody wrote, for tests by hypothesis: in place of a file, or of a field in one."""

import copy
import json

from hypothesis import HealthCheck, example, settings
from hypothesis import strategies as st

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([10**30, 2**63, -1, 1e300])
    | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)  # fmt: skip
FILES = VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=9)
HOSTILE = (b"", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"1e400", b"\xff\xfe{}", b"{}")


def some(n: int):
    """A decorator: n examples, the same ones in every run."""
    return settings(
        max_examples=n, derandomize=True, database=None, deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip


def and_hostile(test):
    """A decorator for a test of FILES: what no random bytes find comes first."""
    for content in HOSTILE:
        test = example(content=content)(test)
    return test


def fields_of(value: dict, above=()) -> list[tuple]:
    """The path to each field, as ("data", "epoch")."""
    found = []
    for name, inner in value.items():
        found.append((*above, name))
        found += fields_of(inner, (*above, name)) if isinstance(inner, dict) else []
    return found


def with_odd_field(data, valid: dict) -> tuple[dict, bool]:
    """A copy of an object of which one field, at any depth, is another value, or missing; and
    whether it is missing. `data` is hypothesis' st.data()."""
    odd = copy.deepcopy(valid)
    *above, name = data.draw(st.sampled_from(fields_of(valid)))
    inner = odd
    for step in above:
        inner = inner[step]
    if missing := data.draw(st.integers(0, 3)) == 0:
        del inner[name]
    else:
        inner[name] = data.draw(VALUES)
    return odd, missing
