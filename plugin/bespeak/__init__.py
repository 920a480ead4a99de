"""Bespeak: personalised search in front of Elasticsearch.

>>> import bespeak
>>> with bespeak.open("shop", rewriter="last-turn") as search:  # doctest: +SKIP
...     search.index("products.jsonl", to="products")
...     print(search.search("running shoes", index="products", user="ada"))

`docs/api.md` shows every name.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from bespeak.errors import BespeakError
    from bespeak.library import Bespeak, Result, open
    from bespeak.models.encoder import Encoder
    from bespeak.records import Hit, Profile, Ranked, Rewrite
    from bespeak.rewriting.rewriter import Rewriter
    from bespeak.settings import Settings, Weights

__version__ = "0.1.0"

__all__ = [
    "Bespeak",
    "BespeakError",
    "Encoder",
    "Hit",
    "Profile",
    "Ranked",
    "Result",
    "Rewrite",
    "Rewriter",
    "Settings",
    "Weights",
    "__version__",
    "open",
]

_MODULES = {
    "Bespeak": "library",
    "BespeakError": "errors",
    "Encoder": "models.encoder",
    "Hit": "records",
    "Profile": "records",
    "Ranked": "records",
    "Result": "library",
    "Rewrite": "records",
    "Rewriter": "rewriting.rewriter",
    "Settings": "settings",
    "Weights": "settings",
    "open": "library",
}
"""Where each name is defined; it is imported when the name is first used, so that `import bespeak` costs nothing."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
