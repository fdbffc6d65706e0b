"""Zero-shot cross-lingual reading (S2DM). `S2DMReader` answers questions about a text, and
`TextVectors` says what texts mean; the modules have the rest."""
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from s2dm.reader import S2DMReader as S2DMReader
    from s2dm.vectors import TextVectors as TextVectors

_MODULES = {"S2DMReader": "reader", "TextVectors": "vectors"}
__all__ = [*_MODULES, "__version__"]


def __getattr__(name): # imported when asked for, since torch takes seconds
    if name not in _MODULES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__(): return __all__
