"""What every test shares: a home of its own, and the development data where they are."""

from pathlib import Path

import pytest

pytest_plugins = ["elasticsearch_node"]

CHECKOUT = Path(__file__).parent.parent


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
    if not folder.is_dir():
        pytest.skip("the development data are not beside this checkout (../shared/data)")
    return folder
