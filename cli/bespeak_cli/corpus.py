"""The demo's documents: docstrings and language topics that come with every Python."""

from __future__ import annotations

import ast
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

# Modules that few readers look for, among them all that PEP 594 removed. They would make the first run longer.
RARE = """
    antigravity this idlelib lib2to3 turtledemo tkinter turtle test ensurepip pydoc_data distutils encodings ctypes
    venv msilib nturl2path ntpath aifc asynchat asyncore audioop cgi cgitb chunk crypt imghdr imp mailcap nis nntplib
    ossaudiodev pipes smtpd sndhdr spwd sunau telnetlib uu xdrlib imaplib poplib pickletools bdb xml xmlrpc wsgiref
    lib2to3 opcode dis symtable tabnanny pyclbr sre_compile sre_parse sre_constants netrc curses dbm binhex formatter
    parser symbol macpath modulefinder"""
LEFT_OUT = frozenset(RARE.split())
EXTENSIONS = """
    builtins math itertools time array binascii cmath errno gc marshal select sys unicodedata zlib faulthandler
    atexit"""
TESTS = ("test", "tests", "testmock")
SHORTEST = 60
"""A docstring with fewer characters is not a document."""


def read_python_documentation() -> Iterator[dict[str, str]]:
    """One document per public module, class and function of the standard library, and per language topic."""
    seen: set[str] = set()
    for title, text in (*read_language_topics(), *read_sources(), *read_extensions()):
        text = inspect.cleandoc(text).strip()
        if len(text) >= SHORTEST and text not in seen:
            seen.add(text)
            yield {"_id": title, "title": title, "text": text}


def read_language_topics() -> Iterator[tuple[str, str]]:
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    for name, text in sorted(topics.items()):
        yield f"language: {name}", text


def read_sources() -> Iterator[tuple[str, str]]:
    """Names and docstrings from the standard library's source files, without running them."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted([*root.glob("*.py"), *root.glob("*/*.py"), *root.glob("*/*/*.py")]):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] not in sys.stdlib_module_names or parts[0] in LEFT_OUT:
            continue
        if any(is_private(part) or part in TESTS for part in parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue
        yield from read_tree(tree, ".".join(p for p in parts if p != "__init__"))


def read_tree(node: Any, name: str) -> Iterator[tuple[str, str]]:
    if text := ast.get_docstring(node):
        yield name, text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not is_private(child.name):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            yield from read_tree(child, f"{name}.{child.name}")


def read_extensions() -> Iterator[tuple[str, str]]:
    """Names and docstrings of modules written in C, which have no Python source."""
    for name in EXTENSIONS.split():
        try:
            module = import_module(name)
        except ImportError:
            continue
        yield from read_members(module, name)


def read_members(owner: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(owner.__doc__, str):
        yield name, owner.__doc__
    for member, value in sorted(vars(owner).items()):
        if is_private(member) or isinstance(value, ModuleType) or not isinstance(getattr(value, "__doc__", None), str):
            continue
        if isinstance(value, type) and isinstance(owner, ModuleType):
            yield from read_members(value, f"{name}.{member}")
        elif callable(value):
            yield f"{name}.{member}", value.__doc__


def is_private(name: str) -> bool:
    return name.startswith("_") and name != "__init__"
