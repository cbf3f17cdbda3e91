"""Packages that one stage alone needs, looked for before its work begins."""

import importlib.util

from common.kit.cli import UserError


def require(module: str, package: str, what: str) -> None:
    """Raises UserError if the package, of which this is a module, is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{what} needs {package}, which is not installed: pip install {package}")
