"""SMoG, Synchronous Momentum Grouping: a reproducible trainer. The heavy parts are imported when they are used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smog.checkpoint import load_backbone
    from smog.config import compose
    from smog.training import train

__all__ = ["compose", "load_backbone", "train"]
_HOME = {"compose": "smog.config", "train": "smog.training", "load_backbone": "smog.checkpoint"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'smog' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
