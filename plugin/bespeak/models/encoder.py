"""The encoder seam: turns texts into vectors, with any sentence-transformers model as ONNX on the CPU."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from bespeak.caching import RecentlyUsed
from bespeak.deadline import Deadline, Late
from bespeak.errors import ModelError
from bespeak.models.catalogue import default_model, model_folder, verify

if TYPE_CHECKING:
    from bespeak.records import Matrix, UserKey, Vector

TextKind: TypeAlias = Literal["query", "document"]

MAX_CHARS_PER_TOKEN = 64
"""Before a text is tokenised, it is cut to this many characters for each token that the model can take."""


class Encoder(Protocol):
    """Two encoders with equal names give comparable vectors."""

    name: str
    dim: int

    def encode(self, texts: Sequence[str], kind: TextKind = "document") -> Matrix:
        """`(n, dim)`: a row of unit length for each text, in order. A text's vector does not depend on the other texts.

        May raise Late when the current deadline is over, even in the middle of a run.
        """
        ...


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """The content of `config.json` in an encoder's folder."""

    dim: int
    # Tokens that the model reads, special ones included; the rest of a text is left out.
    max_tokens: int
    # The vector is the last layer's first token ("cls"), or the mean of its tokens; "none": the model pools by itself.
    pooling: Literal["cls", "mean", "none"]
    # Put before each text.
    query_prefix: str = ""
    document_prefix: str = ""
    # Name of the encoder whose document vectors its own compare with; "": itself.
    of: str = ""

    def __post_init__(self) -> None:
        if self.pooling not in ("cls", "mean", "none"):
            raise ValueError(f"pooling must be cls, mean or none, but is {self.pooling!r}")
        if self.dim < 1 or self.max_tokens < 1:
            raise ValueError(f"dim and max_tokens must be at least 1, but are {self.dim} and {self.max_tokens}")

    def prefix(self, kind: TextKind) -> str:
        return self.query_prefix if kind == "query" else self.document_prefix


def load_encoder(name: str | None = None, cache: Path | None = None, threads: int | None = None) -> Encoder:
    """The encoder with this name or in this folder; by default the shipped one. Raises ModelError.

    `threads` is the number of threads of one run; by default the number of cores, at most 4.
    """
    folder = model_folder(name or default_model("encoder"), cache)
    record = verify(folder, cache)
    if record.kind != "encoder":
        raise ModelError(f"the model {record.name} is a {record.kind}, not an encoder: name an encoder")
    return OnnxEncoder(folder, threads, f"{record.name}@{record.version}")


class OnnxEncoder:
    """Runs the model in a folder of `model.onnx`, `tokenizer.json` and `config.json` with onnxruntime.

    Texts are run one at a time. A quantised model scales its activations over everything in a run, so in a batch the
    other texts would change a text's vector; and on a CPU batches are no faster.
    """

    def __init__(self, folder: Path, threads: int | None = None, name: str | None = None) -> None:
        self.config = read_config(folder)
        self.name = name or folder.name
        self.dim = self.config.dim
        self._tokenizer = open_tokenizer(folder, self.config.max_tokens)
        self._session = open_session(folder / "model.onnx", threads)
        self._inputs = [i.name for i in self._session.get_inputs()]

    def encode(self, texts: Sequence[str], kind: TextKind = "document") -> Matrix:
        import numpy as np

        prefix, limit = self.config.prefix(kind), self.config.max_tokens * MAX_CHARS_PER_TOKEN
        deadline = Deadline.current()
        with deadline.model_run() as run:
            rows = [self._encode_one(prefix + well_formed(text[:limit]), run, deadline) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)

    def _encode_one(self, text: str, run: Any, deadline: Deadline) -> Vector:
        import numpy as np

        deadline.check()
        ids = self._tokenizer.encode(text).ids or [0]
        found = self._run(np.array([ids], np.int64), run, deadline)  # (1, n_tokens, dim), or (1, dim)
        vector = self._pool(found).astype(np.float32)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)  # type: ignore[no-any-return]

    def _run(self, ids: Any, run: Any, deadline: Deadline) -> Any:
        import numpy as np

        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        try:
            return self._session.run(None, {name: feeds[name] for name in self._inputs}, run)[0]
        except Exception as error:  # onnxruntime's own exceptions have no common class below this
            if deadline.over or run.terminate:
                raise Late from error
            raise ModelError(f"the encoder {self.name} failed ({error}): run 'bespeak models verify'") from error

    def _pool(self, found: Any) -> Any:
        if self.config.pooling == "cls":
            return found[0, 0]
        return found[0].mean(axis=0) if self.config.pooling == "mean" else found[0]


class RememberingEncoder:
    """Wraps an encoder and keeps its `size` latest vectors in memory, since queries and turns come again and again.

    A vector is kept under a digest of its text; the text itself is not kept.
    """

    def __init__(self, encoder: Encoder, size: int = 10_000) -> None:
        self.name, self.dim = encoder.name, encoder.dim
        self._encoder = encoder
        self._vectors: RecentlyUsed[bytes, Vector] = RecentlyUsed(size)

    def encode(self, texts: Sequence[str], kind: TextKind = "document") -> Matrix:
        import numpy as np

        rows = [self._vector(text, kind) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.dim), np.float32)

    def knows(self, texts: Sequence[str], kind: TextKind) -> bool:
        """Whether all of them are remembered, so that encoding them takes no time."""
        return all(digest_of(text, kind) in self._vectors for text in texts)

    def forget(self, _user: UserKey) -> None:
        """Drops all vectors, since they do not tell whose texts they are from; also of texts being encoded now."""
        self._vectors.clear()

    def _vector(self, text: str, kind: TextKind) -> Vector:
        digest = digest_of(text, kind)
        if (known := self._vectors.get(digest)) is not None:
            return known
        n_forgotten = self._vectors.n_forgotten
        vector: Vector = self._encoder.encode([text], kind)[0]
        self._vectors.put(digest, vector, n_forgotten)
        return vector


def digest_of(text: str, kind: TextKind) -> bytes:
    return hashlib.blake2b(f"{kind} {text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def encode_until(
    encoder: Encoder, texts: Sequence[str], kind: TextKind = "document", deadline: Deadline | None = None
) -> Matrix:
    """The vectors of as many of the first texts as can be encoded before `deadline` (by default the current one).

    `(n_done, dim)`, n_done <= len(texts).
    """
    import numpy as np

    deadline = deadline or Deadline.current()
    rows: list[Vector] = []
    with deadline.held():
        for text in texts:
            try:
                deadline.check()
                rows.append(encoder.encode([text], kind)[0])
            except Late:
                break
    return np.stack(rows) if rows else np.zeros((0, encoder.dim), np.float32)


def well_formed(text: str) -> str:
    """The text as valid Unicode: surrogate pairs become their character, and a lone surrogate becomes U+FFFD."""
    if not any("\ud800" <= c <= "\udfff" for c in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def read_config(folder: Path) -> EncoderConfig:
    path = folder / "config.json"
    try:
        return EncoderConfig(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"{path} does not describe an encoder ({error}): give a folder that 'bespeak models export' made"
        ) from error


def open_tokenizer(folder: Path, max_tokens: int) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(f"{folder / 'tokenizer.json'} cannot be read ({error}): make the model again") from error
    tokenizer.enable_truncation(max_tokens)
    tokenizer.no_padding()
    return tokenizer


def open_session(path: Path, threads: int | None) -> Any:
    """A session on the CPU. Idle threads sleep instead of spinning, so that a short command wastes no CPU time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or min(4, os.cpu_count() or 1)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common class below this
        raise ModelError(f"{path} cannot be loaded ({error}): make the model again") from error
