"""Packages that only one stage needs: check for them before its work begins."""

import importlib.util

from common.kit.cli import UserError


def require(module: str, package: str, what: str) -> None:
    """Raises UserError if the package that has this module is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{what} needs {package}, which is not installed: pip install {package}")
