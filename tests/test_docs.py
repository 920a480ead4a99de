"""The documentation: its generated pages, its links, its imports, and the map of the code in CONTRIBUTING."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY, COMMANDS = ROOT / "plugin" / "bespeak", ROOT / "cli" / "bespeak_cli"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name(path):
    return str(path.relative_to(ROOT))


def prose(page):
    """The page without code: fenced or indented blocks, and code in a line."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page):
    """The anchors that GitHub gives the page's headings; a heading that repeats gets a number."""
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = []
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        n = sum(other == slug or re.fullmatch(re.escape(slug) + r"-\d+", other) is not None for other in found)
        found.append(f"{slug}-{n}" if n else slug)
    return set(found)


def test_the_command_reference_is_what_the_commands_print(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    script = runpy.run_path(str(ROOT / "scripts" / "command_reference.py"))
    stale = "docs/commands.md is stale: run python scripts/command_reference.py"
    assert script["PAGE"].read_text("utf-8") == script["reference"](), stale


def test_the_page_of_statuses_is_what_the_code_says():
    script = runpy.run_path(str(ROOT / "scripts" / "status_reference.py"))
    stale = "docs/statuses.md is stale: run python scripts/status_reference.py"
    assert script["PAGE"].read_text("utf-8") == script["reference"](), stale


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_python_examples_import_what_exists(page):
    for imports in imports_of_ours(page):
        exec(imports, {})


def imports_of_ours(page):
    """The `from bespeak… import …` of the page's Python blocks, also with prompts or over several lines."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    code = re.sub(r"^(?:>>>|\.\.\.) ", "", "".join(blocks), flags=re.MULTILINE)
    return re.findall(r"^(?:from bespeak[\w.]* import (?:\([^)]*\)|.*)|import bespeak.*)$", code, re.MULTILINE)


def test_imports_are_found_in_every_form(tmp_path):
    page = tmp_path / "page.md"
    lines = ["from bespeak.records import (", "    Hit,", ")", ">>> import bespeak", "from pathlib import Path"]
    page.write_text("\n".join(["```python", *lines, "```", "from bespeak import nothing"]), "utf-8")
    assert imports_of_ours(page) == ["from bespeak.records import (\n    Hit,\n)", "import bespeak"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings_that_exist(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert not broken


def test_the_code_refers_to_pages_and_headings_that_exist():
    sources = [path for top in ("plugin", "cli", "scripts", "benchmarks") for path in (ROOT / top).rglob("*.py")]
    broken = []
    for source in sources:
        for page, anchor in re.findall(r"\b(docs/[\w/-]+\.md)(?:#([\w-]+))?", source.read_text("utf-8")):
            if not (ROOT / page).exists() or (anchor and anchor not in anchors(ROOT / page)):
                broken.append(f"{name(source)}: {page}#{anchor}")
    assert not broken


def rooms():
    """The files and folders that the map in CONTRIBUTING names, each with what the map says of it."""
    section = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("\n## Find the room\n")[2].partition("\n## ")[0]
    found = {}
    for row in section.splitlines():
        if not row.startswith("| ") or row.startswith("| ---"):
            continue
        about, where = row.strip("| ").split(" | ")
        found |= {room: about for room in re.findall(r"`([\w./-]+)`", where) if room.endswith((".py", "/"))}
    return found


def locate(room):
    """Rooms of the library are named from plugin/bespeak, those of the command line from cli, others from the top."""
    return next((top / room for top in (LIBRARY, ROOT / "cli", ROOT) if (top / room).exists()), None)


def test_the_map_names_nothing_that_does_not_exist():
    assert [room for room in rooms() if locate(room) is None] == []


def test_the_map_names_every_module_and_command():
    covered = [locate(room) for room, about in rooms().items() if about]
    modules = [path for top in (LIBRARY, COMMANDS) for path in top.rglob("*.py") if not path.name.startswith("__")]
    missing = [name(path) for path in modules if not any(path == room or room in path.parents for room in covered)]
    assert missing == []


def test_a_folder_whose_files_are_named_is_not_named_itself():
    """Otherwise the folder would cover its files: a new file would go unnoticed."""
    named = rooms()
    folders = [room for room in named if room.endswith("/")]
    assert [folder for folder in folders if any(room != folder and room.startswith(folder) for room in named)] == []
