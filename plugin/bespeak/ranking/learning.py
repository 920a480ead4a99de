"""Learns weights between documents from what all users did, and keeps them in one file per tenant.

EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", 2019): for a matrix X of users and documents
P = (X'X + ridge I)^-1 and B = I - P diag(P)^-1, so that the diagonal of B is 0; the score of document j for a user
with interests x is sum_i x_i B_ij. With fewer users than documents P comes from the smaller matrix:
P = (I - X'(XX' + ridge I)^-1 X) / ridge. A weight is kept only if at least `MIN_USERS` users touched both documents, so
that nobody can infer from their hits what one particular user touched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bespeak.errors import InputError, StoreError
from bespeak.files import make_private_folder, replacing
from bespeak.ranking.behaviour import Behaviour, Floats, Rows
from bespeak.records import Preference

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LearningReport: TypeAlias = Callable[[str], object]

MAGIC = b"bespeak-learnt-1\n"
MIN_USERS = 3
MIN_EVENTS = 100
MAX_ITEMS = 8_000
"""Only this many documents are learnt, those that most users touched."""
NEIGHBOURS = 500
RIDGE = 500.0
"""In units of the mean squared interest."""
PRIOR, PRIOR_HALVED = 0.0045, 10.0
"""Weight of popularity beside the user's own history, and after how many documents in the history it is halved."""
RECENT = 3.0
"""After this many later documents an interest counts 1/sqrt(2)."""
MIN_SPREAD = 0.5
"""Lower bound on the standard deviation of log popularity: where all are about equal, a new document is not far off."""
BLOCK = 512


def interests(preferences: Sequence[Preference]) -> Floats:
    """Interests, less the older they are, `(n_preferences,)`: interest x (1 + later / 3)^-0.5 if `later` are newer."""
    newest = sorted(range(len(preferences)), key=lambda i: preferences[i].timestamp, reverse=True)
    found = np.zeros(len(preferences), np.float32)
    for later, i in enumerate(newest):
        found[i] = preferences[i].interest * (1 + later / RECENT) ** -0.5
    return found


@dataclass(frozen=True)
class Learnt:
    """Each document's strongest neighbours with their weights, and its popularity.

    `neighbours` and `weights` are `(n_docs, n_neighbours)`; short rows are filled up with weights of 0. `prior` is
    `(n_docs,)`: the z-score of log(1 + users who liked it), times the root mean square of an interest; `unknown` is
    the prior of a document that nobody liked.
    """

    doc_ids: Sequence[str]
    neighbours: Rows
    weights: Floats
    prior: Floats
    unknown: float
    digest: str = ""

    @cached_property
    def row(self) -> dict[str, int]:
        return {doc_id: n for n, doc_id in enumerate(self.doc_ids)}

    def shares(self, doc_ids: Sequence[str], preferences: Sequence[Preference]) -> Floats:
        """What each preference adds to each document's score, `(n_docs, n_preferences)`."""
        found = np.zeros((len(doc_ids), len(preferences)), np.float32)
        known = [(n, self.row[doc_id]) for n, doc_id in enumerate(doc_ids) if doc_id in self.row]
        place = np.full(len(self.doc_ids), -1, np.int32)
        for n, liked in enumerate(preferences):
            if liked.doc_id in self.row:
                place[self.row[liked.doc_id]] = n
        if not known or not len(preferences):
            return found
        hits, rows = np.array(known).T
        at = place[self.neighbours[rows]]  # (n_known, n_neighbours)
        i, j = np.nonzero((at >= 0) & (self.weights[rows] != 0))
        found[hits[i], at[i, j]] = self.weights[rows[i], j]
        return found * interests(preferences)

    def best(self, preferences: Sequence[Preference], n: int) -> list[str]:
        """The ids of the `n` best documents, best first; ties in the order of `doc_ids`."""
        own = np.zeros(len(self.doc_ids), np.float32)
        for liked, interest in zip(preferences, interests(preferences), strict=True):
            if liked.doc_id in self.row:
                own[self.row[liked.doc_id]] = interest
        share = np.float32(PRIOR * PRIOR_HALVED / (PRIOR_HALVED + len(preferences)))
        scores = (own[self.neighbours] * self.weights).sum(axis=1) + self.prior * share
        return [self.doc_ids[row] for row in np.argsort(-scores, kind="stable")[:n]]

    def priors(self, doc_ids: Sequence[str], n_preferences: int) -> Floats:
        """Popularity in the unit of `shares`, `(n_docs,)`; it counts less the more preferences the user has."""
        rows = [self.row.get(doc_id, -1) for doc_id in doc_ids]
        found = np.array([self.prior[row] if row >= 0 else self.unknown for row in rows], np.float32)
        return found * np.float32(PRIOR * PRIOR_HALVED / (PRIOR_HALVED + n_preferences))


def learn(behaviour: Behaviour, report: LearningReport = lambda _step: None) -> Learnt:
    """Learns from the behaviour of one tenant's users. Raises InputError if there is too little of it."""
    check_enough(behaviour)
    chosen = _most_touched(behaviour)
    x = _matrix(behaviour, chosen)
    report(f"{x.shape[0]} users, {x.shape[1]} documents, {x.nnz} pairs")
    neighbours, weights = solve(x, report)
    prior, unknown = _popularity(x)
    return Learnt([behaviour.doc_ids[n] for n in chosen], neighbours, weights, prior, unknown)


def _most_touched(behaviour: Behaviour) -> npt.NDArray[np.intp]:
    """The documents that enough users touched, most users first. Raises InputError if there are fewer than two."""
    counts = np.bincount(behaviour.docs, minlength=len(behaviour.doc_ids))
    chosen = np.flatnonzero(counts >= MIN_USERS)
    if len(chosen) < 2:
        raise InputError(f"no two documents were touched by {MIN_USERS} users: load more events, then learn again")
    most_first: npt.NDArray[np.intp] = chosen[np.lexsort((chosen, -counts[chosen]))][:MAX_ITEMS]
    return most_first


def _matrix(behaviour: Behaviour, chosen: npt.NDArray[np.intp]) -> csr_matrix:
    """`(n_users, n_chosen)`: the users' interests in the chosen documents."""
    from scipy.sparse import csr_matrix

    column = np.full(len(behaviour.doc_ids), -1, np.int32)
    column[chosen] = np.arange(len(chosen))
    inside = column[behaviour.docs] >= 0
    at = (behaviour.users[inside], column[behaviour.docs[inside]])
    return csr_matrix((behaviour.values[inside], at), shape=(behaviour.n_users, len(chosen)), dtype=np.float32)


def _popularity(x: csr_matrix) -> tuple[Floats, float]:
    """`Learnt.prior` and `Learnt.unknown`."""
    liked = np.asarray((x > 0).sum(axis=0), np.float32).ravel()
    logs = np.log1p(liked)
    mean, spread = float(logs.mean()), max(float(logs.std()), MIN_SPREAD)
    unit = float(np.sqrt(np.mean(np.square(x.data)))) / spread
    return ((logs - mean) * unit).astype(np.float32), -mean * unit


def check_enough(behaviour: Behaviour) -> None:
    """Raises InputError if there are too few events or users to learn from."""
    if behaviour.n_events < MIN_EVENTS or behaviour.n_users < MIN_USERS:
        raise InputError(
            f"{behaviour.n_events} events of {behaviour.n_users} users are too few to learn from: at least "
            f"{MIN_EVENTS} events of {MIN_USERS} users are needed; load more with `bespeak events load`"
        )


def solve(x: csr_matrix, report: LearningReport) -> tuple[Rows, Floats]:
    """Each document's strongest neighbours and their weights, both `(n_docs, n_neighbours)`; computed in blocks."""
    n_users, n_docs = x.shape
    ridge = np.float32(RIDGE * float(np.mean(np.square(x.data))))
    columns = _dual(x, ridge) if n_users < n_docs else _primal(x, ridge)
    touched = x.copy()
    touched.data = np.ones_like(touched.data)
    kept = min(NEIGHBOURS, n_docs - 1)
    neighbours, weights = np.zeros((n_docs, kept), np.int32), np.zeros((n_docs, kept), np.float32)
    for start in range(0, n_docs, BLOCK):
        block = np.arange(start, min(start + BLOCK, n_docs))
        p = columns(block)  # (n_docs, n_block)
        b = -p / p[block, np.arange(len(block))]
        together = (touched.T @ touched[:, block]).toarray()
        b[together < MIN_USERS] = 0
        b[block, np.arange(len(block))] = 0
        rows = np.argpartition(-np.abs(b), kept - 1, axis=0)[:kept]  # (kept, n_block)
        neighbours[block], weights[block] = rows.T, np.take_along_axis(b, rows, axis=0).T
        report(f"weights of {block[-1] + 1} of {n_docs} documents")
    return neighbours, weights


def _primal(x: csr_matrix, ridge: np.float32) -> Callable[[Any], Floats]:
    from scipy.linalg import lapack

    gram = np.asfortranarray((x.T @ x).toarray(), np.float32)
    gram[np.diag_indices_from(gram)] += ridge
    factor, failed = lapack.spotrf(gram, lower=1, overwrite_a=1)
    inverse, failed_too = lapack.spotri(factor, lower=1, overwrite_c=1)
    check_numbers(failed or failed_too)

    def columns(block: Any) -> Floats:
        """Columns of the symmetric matrix, of which only the lower triangle is filled."""
        found = np.array(inverse[:, block])
        for n, j in enumerate(block):
            found[:j, n] = inverse[j, :j]
        return found

    return columns


def _dual(x: csr_matrix, ridge: np.float32) -> Callable[[Any], Floats]:
    from scipy.linalg import lapack

    small = np.asfortranarray((x @ x.T).toarray(), np.float64)
    small[np.diag_indices_from(small)] += ridge
    factor, failed = lapack.dpotrf(small, lower=1, overwrite_a=1)
    check_numbers(failed)

    def columns(block: Any) -> Floats:
        half, _ = lapack.dpotrs(factor, x[:, block].toarray().astype(np.float64, order="F"), lower=1, overwrite_b=1)
        found: Floats = np.asarray(-(x.T @ half.astype(np.float32)), np.float32)
        found[block, np.arange(len(block))] += 1
        return found / ridge

    return columns


def check_numbers(failed: int) -> None:
    if failed:  # with a ridge above 0, only a value that is not finite does this
        raise InputError("the events contain a value that is not a number: load them again")


def learnt_path(folder: Path, tenant: str) -> Path:
    return folder / f"learnt-{hashlib.sha256(tenant.encode()).hexdigest()[:16]}.bin"


def write_learnt(path: Path, learnt: Learnt) -> str:
    """Writes the file as a whole or not at all; returns its digest. Raises StoreError."""
    arrays = (learnt.neighbours.astype("<i4"), learnt.weights.astype("<f4"), learnt.prior.astype("<f4"))
    body = [np.ascontiguousarray(array).tobytes() for array in arrays]
    head = {"doc_ids": list(learnt.doc_ids), "neighbours": learnt.neighbours.shape[1], "unknown": learnt.unknown}
    header = json.dumps(head).encode("ascii") + b"\n"
    header += b" " * (-(len(MAGIC) + 65 + len(header)) % 4)  # aligns the arrays to their items
    digest = hashlib.sha256(b"".join([header, *body])).hexdigest()
    try:
        make_private_folder(path.parent)
        with replacing(path, durable=True) as file:
            file.writelines([MAGIC, digest.encode("ascii"), b"\n", header, *body])
    except OSError as error:
        raise StoreError(f"cannot write {path} ({error.strerror}): give a writable --data-dir") from error
    return digest


def read_learnt(path: Path) -> Learnt:
    """The content of the file, memory-mapped. Raises StoreError if it is damaged or cannot be read."""
    try:
        mapped = np.memmap(path, np.uint8, "r")
        start = len(MAGIC) + 65
        if bytes(mapped[: len(MAGIC)]) != MAGIC:
            raise ValueError
        digest = bytes(mapped[len(MAGIC) : start - 1]).decode("ascii")
        if hashlib.sha256(mapped[start:].data).hexdigest() != digest:
            raise ValueError
        with path.open("rb") as file:
            file.seek(start)
            line = file.readline()
        head: Mapping[str, Any] = json.loads(line)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is damaged or cannot be read: run `bespeak learn` again") from error
    start += len(line) + -(start + len(line)) % 4
    n, kept = len(head["doc_ids"]), head["neighbours"]
    numbers = mapped[start:]
    neighbours = numbers[: 4 * n * kept].view("<i4").reshape(n, kept)
    weights = numbers[4 * n * kept : 8 * n * kept].view("<f4").reshape(n, kept)
    prior = numbers[8 * n * kept :].view("<f4")
    return Learnt(head["doc_ids"], neighbours, weights, prior, head["unknown"], digest)


class LearntFolder:
    """The files beside the event store. Each is read once, and again after `bespeak learn` has replaced it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[tuple[int, int], Learnt | None, str]] = {}

    def holds(self, tenant: str) -> bool:
        """Whether anything was learnt for the tenant. It still counts users who were forgotten since then."""
        return learnt_path(self._folder, tenant).exists()

    def of(self, tenant: str) -> tuple[Learnt | None, str]:
        """What was learnt from a tenant's users, and why it cannot be used; None and "" if nothing was learnt."""
        path = learnt_path(self._folder, tenant)
        try:
            seen = path.stat()
        except OSError:
            return None, ""
        stamp = (seen.st_mtime_ns, seen.st_ino)
        known = self._read.get(tenant)
        if known is None or known[0] != stamp:
            try:
                known = (stamp, read_learnt(path), "")
            except StoreError as error:
                known = (stamp, None, f"without what was learnt: {error}")
            self._read[tenant] = known
        return known[1], known[2]
