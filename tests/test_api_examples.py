"""The library's pages and docstrings are correct: examples run, and every public name is on the page."""

import asyncio
import dataclasses
import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import bespeak
from bespeak.proxy import Proxy

DOCS = Path(__file__).parent.parent / "docs"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """Lets examples write to their own working folder and home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def page():
    return (DOCS / "api.md").read_text("utf-8")


def sections(level):
    """Heading -> text, of the headings of this level that are a name."""
    found = re.split(rf"^{'#' * level} `(\w+)`\n", page(), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def test_the_examples_of_the_page_run_as_shown(in_folder):
    examples = "".join(BLOCK.findall(page()))
    test = doctest.DocTestParser().get_doctest(examples, {}, "api.md", str(DOCS / "api.md"), 0)
    said = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append)
    assert len(test.examples) > 20
    assert not said, "".join(said)


@pytest.mark.parametrize(
    "module", ["bespeak", "bespeak.library", "bespeak.parts", "bespeak.settings", "bespeak.records"]
)
def test_the_examples_of_docstrings_run_as_shown(in_folder, module):
    assert doctest.testmod(importlib.import_module(module), optionflags=OPTIONS).failed == 0


def test_the_page_has_every_public_name_and_no_other():
    headings = set(sections(2))
    assert headings == set(bespeak.__all__) - {"__version__"}
    table = page().partition("## ")[0]
    assert set(re.findall(r"`(\w+)`\]|^\| `(\w+)`", table, re.MULTILINE)) == {
        *((name, "") for name in headings),
        ("", "__version__"),
    }


def test_the_page_has_every_method_and_no_other():
    methods = {name for name, _ in inspect.getmembers(bespeak.Bespeak, inspect.isfunction) if not name.startswith("_")}
    assert set(sections(3)) == methods


@pytest.mark.parametrize("name", ["Result", "Ranked", "Hit", "Rewrite", "Profile", "Settings", "Weights"])
def test_the_page_has_every_field_of_a_record(name):
    fields = {field.name for field in dataclasses.fields(getattr(bespeak, name))}
    assert fields <= set(re.findall(r"\b\w+\b", sections(2)[name]))


def test_the_page_has_every_argument():
    said = {"open": sections(2)["open"]} | sections(3)
    for name, text in said.items():
        called = getattr(bespeak, name, None) or getattr(bespeak.Bespeak, name)
        arguments = set(inspect.signature(called).parameters) - {"self"}
        assert arguments <= set(re.findall(r"\b\w+\b", text)), name


def test_every_public_name_has_a_docstring():
    for name in bespeak.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(bespeak, name)), name


def test_the_guides_own_app_ranks_as_serve_does(in_folder):
    """The snippet runs unchanged, and uses everything that `bespeak serve` ranks by."""
    section = (DOCS / "proxy.md").read_text("utf-8").partition("## In your own app\n")[2]
    (snippet,) = BLOCK.findall(section.partition("\n## ")[0])
    names = {}
    exec(snippet, names)
    parts = names["parts"]
    assert None not in (parts.encoder, parts.context, parts.learnt)
    assert isinstance(names["app"], Proxy)
    asyncio.run(names["app"].close())
