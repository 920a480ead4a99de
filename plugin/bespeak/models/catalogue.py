"""Finds templates and models, describes the models, and checks that their files are intact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache as remember
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from bespeak.errors import ModelError
from bespeak.files import replacing

ModelKind: TypeAlias = Literal["encoder", "context-encoder", "context-reader", "rewriter"]

MANIFEST = "manifest.json"
RECORD = "model.json"
VERIFIED = "verified.json"
COMPUTED = (".onnx", ".data", ".json")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What a model's file must be like."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What a model is. A model made on this machine has its record in its folder, as `model.json`."""

    name: str
    kind: ModelKind
    files: Mapping[str, ModelFile]
    licence: str
    source: str
    made: str  # how it was made, in a sentence
    default: bool = False  # used when no model is named

    @property
    def version(self) -> str:
        """Eight hex digits that change with any file that affects results; a card or a licence does not."""
        content = sorted((name, file.sha256) for name, file in self.files.items() if Path(name).suffix in COMPUTED)
        return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()[:8]


def asset_folder(name: Literal["templates", "onnx_models"]) -> Path:
    """The folder inside the installed package or else at the top of the checkout of an editable install."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / name, package.parents[1] / name):
        if folder.is_dir():
            return folder
    raise ModelError(f"the folder {name} is not part of this installation ({package}): install bespeak again")


@remember
def manifest() -> dict[str, ModelRecord]:
    """The shipped models by name."""
    path = asset_folder("onnx_models") / MANIFEST
    try:
        rows = json.loads(path.read_text("utf-8"))["models"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the list of models {path} cannot be read ({error}): install bespeak again") from error
    return {record.name: record for record in (parse_record(row, path) for row in rows)}


def default_model(kind: ModelKind) -> str:
    """Name of the shipped model that is used when none is named. Raises ModelError."""
    for record in manifest().values():
        if record.kind == kind and record.default:
            return record.name
    raise ModelError(f"no {kind} is shipped with this installation: name a model or a folder")


def known_models(cache: Path | None) -> Iterator[tuple[ModelRecord, Path]]:
    """Every shipped model with its folder, then those in the cache; a shipped model hides one of its name."""
    for name, record in manifest().items():
        yield record, asset_folder("onnx_models") / name
    made = sorted((cache / "models").glob(f"*/{RECORD}")) if cache else []
    for path in made:
        record_there = read_record(path.parent)
        if record_there and record_there.name not in manifest():
            yield record_there, path.parent


def model_folder(name: str, cache: Path | None = None) -> Path:
    """Folder of a shipped model, of one in the cache (`<cache>/models/<name>`), or the folder given as `name`."""
    if name in manifest():
        return asset_folder("onnx_models") / name
    if cache and name and Path(name).name == name and (cache / "models" / name / RECORD).is_file():
        return cache / "models" / name
    if (Path(name) / "model.onnx").is_file() or (Path(name) / RECORD).is_file():
        return Path(name)
    known = ", ".join(record.name for record, _ in known_models(cache))
    raise ModelError(
        f"there is no model {name!r}: choose one of {known}, or a folder with model.onnx, tokenizer.json and "
        "config.json, or make it with 'bespeak models export' or 'bespeak models build'"
    )


def read_record(folder: Path) -> ModelRecord | None:
    """The record of the model in this folder, its own or that of the shipped list; None if there is neither."""
    path = folder / RECORD
    if path.is_file():
        try:
            return parse_record(json.loads(path.read_text("utf-8")), path)
        except (OSError, ValueError) as error:
            raise ModelError(f"the record {path} cannot be read ({error}): delete the folder, make it again") from error
    if folder.resolve().parent == asset_folder("onnx_models").resolve():
        return manifest().get(folder.name)
    return None


def write_record(folder: Path, record: ModelRecord) -> None:
    """Writes the record beside the files it describes. Write it last, so that a model with a record is complete."""
    write_json(folder / RECORD, asdict(record))


def parse_record(row: Any, path: Path) -> ModelRecord:
    try:
        files = {name: ModelFile(str(f["sha256"]), int(f["bytes"])) for name, f in row["files"].items()}
        return ModelRecord(**{**row, "files": files})
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ModelError(f"{path} does not describe a model ({error!r}): make the model again") from error


def describe_files(folder: Path) -> dict[str, ModelFile]:
    """Size and sha256 of every file in the folder, except the record itself."""
    return {
        path.name: ModelFile(digest_file(path), path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != RECORD
    }


def verify(folder: Path, cache: Path | None = None) -> ModelRecord:
    """The record of the model in this folder, after checking that its files match the record.

    Sizes are compared each time. A file's sha256 is remembered in the cache folder and computed again only when the
    file's size, time or inode changes; without a writable cache folder it is computed each time. A folder without a
    record gets one for the files as they are. Raises ModelError.
    """
    record = read_record(folder)
    if record is None:
        return foreign_record(folder, cache)
    for name, expected in record.files.items():
        check_size(folder / name, expected, record)
    seen = Digests(cache)
    for name, expected in record.files.items():
        found = seen.sha256(folder / name)
        if found != expected.sha256:
            raise ModelError(
                f"{folder / name} of the model {record.name} has the sha256 {found[:12]}… instead of "
                f"{expected.sha256[:12]}…, so it was damaged or changed: {remedy(record)}"
            )
    seen.save()
    return record


def check_size(path: Path, expected: ModelFile, record: ModelRecord) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(
            f"{path} of the model {record.name} cannot be read ({error.strerror}): {remedy(record)}"
        ) from error
    if size != expected.bytes:
        state = "cut short" if size < expected.bytes else "changed"
        raise ModelError(
            f"{path} of the model {record.name} has {size} bytes instead of {expected.bytes}, so it was {state}: "
            f"{remedy(record)}"
        )


def remedy(record: ModelRecord) -> str:
    """What the user can do about a damaged model."""
    if record.name in manifest():
        return "install bespeak again"
    if record.kind == "rewriter":
        return "run 'bespeak models build'"
    command = {"context-encoder": "train-context", "context-reader": "train-reader"}.get(record.kind, "export")
    return f"delete its folder and run 'bespeak models {command}' again"


def foreign_record(folder: Path, cache: Path | None) -> ModelRecord:
    """A record for an encoder's folder that was not made by Bespeak. Raises ModelError."""
    seen = Digests(cache)
    files = {}
    for name in ("model.onnx", "tokenizer.json", "config.json"):
        path = folder / name
        if not path.is_file():
            raise ModelError(
                f"the model folder {folder} has no {name}: give a folder that 'bespeak models export' made"
            )
        files[name] = ModelFile(seen.sha256(path), path.stat().st_size)
    seen.save()
    return ModelRecord(folder.resolve().name, "encoder", files, "unknown", str(folder), "not made by bespeak")


class Digests:
    """The sha256 of files, remembered in the cache folder while size, time and inode stay the same."""

    def __init__(self, cache: Path | None) -> None:
        self._path = cache / VERIFIED if cache else None
        self._known = self._read()
        self._changed = False

    def sha256(self, path: Path) -> str:
        stat = path.stat()
        key, state = str(path.resolve()), [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(key)
        if isinstance(known, list) and len(known) == 4 and known[:3] == state and isinstance(known[3], str):
            return known[3]
        found = digest_file(path)
        self._known[key] = [*state, found]
        self._changed = True
        return found

    def save(self) -> None:
        """Writes the digests to the cache folder; if that fails, the next process computes them again."""
        if self._path and self._changed:
            try:
                write_json(self._path, self._known)
            except OSError:
                return

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._path.read_text("utf-8")) if self._path else {}
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def digest_file(path: Path) -> str:
    """The sha256 of a file in hex. Raises ModelError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}): make it readable, or make the model again"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Writes the file as a whole or not at all: other processes never see half a file. Raises OSError."""
    with replacing_model_file(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)


@contextmanager
def replacing_model_file(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """`replacing`, for a file that every user may read. Raises OSError."""
    with replacing(path, mode, **options) as file:
        yield file
    path.chmod(0o644)
