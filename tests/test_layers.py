"""Imports run one way: a room imports only from the floors below it, and no two files import each other in a loop.

A class name has one meaning.
"""

import ast
from collections import defaultdict
from pathlib import Path

import bespeak
import bespeak_cli

ROOT = Path(bespeak.__file__).parent
COMMANDS = Path(bespeak_cli.__file__).parent
FLOORS = (
    ("errors", "statuses", "caching", "files", "sqlite_errors"),
    ("arguments",),
    ("records",),
    ("deadline", "document", "settings"),
    ("text",),
    ("models",),
    ("session",),
    ("rewriting",),
    ("engines",),
    ("profiles",),
    ("ranking",),
    ("parts",),
    ("reading",),
    ("pipeline",),
    ("show",),
    ("library",),
    ("evaluation", "batch", "proxy"),
    ("training",),
)
"""From the lowest to the highest."""


def test_every_room_has_a_floor_and_every_floor_holds_existing_rooms():
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"__init__"} == {room for floor in FLOORS for room in floor}


def test_imports_run_one_way():
    floor_of = {room: n for n, rooms in enumerate(FLOORS) for room in rooms}
    upward = {
        f"{module} imports {imported}"
        for module, found in imports().items()
        for imported in found
        if room_of(module) != room_of(imported)
        and room_of(imported) in floor_of
        and floor_of.get(room_of(imported), 99) >= floor_of.get(room_of(module), 100)
    }
    assert not upward


def test_no_files_import_each_other_in_a_loop():
    graph = imports()
    assert not [loop for module in graph if (loop := path_back(graph, module))]


def test_a_class_name_has_one_meaning():
    """The library's `Result` is the record with a way to print it."""
    twice = {name: modules for name, modules in modules_by_class().items() if len(modules) > 1}
    assert twice == {"Result": ["bespeak.library", "bespeak.records"]}


def modules_by_class():
    """Name of a class, nested or not -> the modules that define one of that name."""
    found = defaultdict(list)
    for path in sorted([*ROOT.rglob("*.py"), *COMMANDS.rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(dotted(path))
    return found


def imports():
    """Module -> the modules of Bespeak that it imports anywhere, even in a function or only for types."""
    names = {path: dotted(path) for path in ROOT.rglob("*.py")}
    known = set(names.values())
    return {name: found_in(path, known) - {name} for path, name in names.items()}


def dotted(path):
    base = ROOT if path.is_relative_to(ROOT) else COMMANDS
    parts = path.relative_to(base.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def found_in(path, known):
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bespeak":
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & known
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner | ({node.module} if inner != named else set())
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names} & known
    return found


def room_of(module):
    return module.split(".")[1] if "." in module else "__init__"


def path_back(graph, start):
    """The modules of a loop that goes through `start`; empty if there is no such loop."""
    came_from, waiting = {}, [start]
    while waiting:
        module = waiting.pop()
        for imported in graph.get(module, ()):
            if imported == start:
                loop = [module]
                while loop[-1] != start:
                    loop.append(came_from[loop[-1]])
                return loop
            if imported not in came_from:
                came_from[imported] = module
                waiting.append(imported)
    return []
