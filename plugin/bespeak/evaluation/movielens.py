"""Personal gain on MovieLens: genre queries of users whose later ratings are known.

Each user's ratings are sorted by time, ties by movie number. The first floor(0.7 n) are the history. A query is a genre
in which the user later gave 4 stars or more to a movie that is not in the history. Such movies are relevant; all movies
of the genre that are not in the history are ranked.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bespeak.document import hit_text
from bespeak.engines import Engine
from bespeak.errors import InputError
from bespeak.evaluation.kept import Report, silent
from bespeak.evaluation.memory import DEPTH, best
from bespeak.evaluation.systems import Cell, check_names, tabulate
from bespeak.evaluation.topics import Collection
from bespeak.parts import Parts
from bespeak.pipeline import liked_ids, rank, search
from bespeak.profiles.deriving import UserEvents, derive
from bespeak.profiles.events import new_event
from bespeak.profiles.stores import PREFERENCES_READ
from bespeak.ranking.behaviour import gather
from bespeak.ranking.learning import Learnt, learn
from bespeak.ranking.rerank import Window
from bespeak.reading import Reading, read
from bespeak.records import Clause, Document, EngineQuery, Event, Hit, Matrix, Profile, Request, UserKey, Vector
from bespeak.rewriting.rewriter import Unchanged
from bespeak.settings import Settings, Weights

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder

SYSTEMS = ("engine", "user", "learnt", "search", "popularity", "item-knn")
LEARNING = ("learnt", "search")
BASELINE = "engine"
HISTORY_SHARE = 0.7
RELEVANT_FROM = 4.0
LENGTHS: Mapping[str, int] = {str(n): n for n in (0, 1, 2, 3, 5, 10, 30)} | {"all": PREFERENCES_READ}
"""Lengths of history by name: how many of the latest ratings each keeps. `all` keeps as many as a store reads."""
ANY_LENGTH = "any"
"""The stage of a system that ignores the history."""
SEARCHED = 300
"""Hits of a search; the user may have rated many of them before."""
TENANT = "evaluation"
Array: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rating:
    movie_id: str
    stars: float
    timestamp: int  # seconds since 1970


@dataclass(frozen=True, slots=True)
class Viewer:
    """A user's ratings by time: the history, and what came after."""

    user_id: int
    before: tuple[Rating, ...]
    after: tuple[Rating, ...]

    @property
    def rated(self) -> frozenset[str]:
        return frozenset(rating.movie_id for rating in self.before)


@dataclass(frozen=True, slots=True)
class GenreQuery:
    query_id: str
    viewer: Viewer
    genre: str
    relevant: frozenset[str]


@dataclass(frozen=True)
class MovieLens:
    """Movies in order of doc_id, their genres, all users' ratings, and the queries of the users who are measured."""

    movies: Collection  # without topics
    genres: Mapping[str, tuple[str, ...]]
    viewers: tuple[Viewer, ...]  # all users, by id
    teachers: tuple[Viewer, ...]  # the users who are never measured
    queries: tuple[GenreQuery, ...]

    @property
    def qrels(self) -> dict[str, dict[str, int]]:
        return {query.query_id: dict.fromkeys(sorted(query.relevant), 1) for query in self.queries}

    @property
    def groups(self) -> dict[str, str]:
        """`query_id → user`."""
        return {query.query_id: str(query.viewer.user_id) for query in self.queries}

    @cached_property
    def row(self) -> dict[str, int]:
        """`doc_id → row among the movies`."""
        return {document.doc_id: n for n, document in enumerate(self.movies.documents)}

    def candidates(self, query: GenreQuery) -> Rows:
        """Rows of the genre's movies that are not in the user's history, ascending."""
        rated = query.viewer.rated
        rows = [self.row[doc_id] for doc_id in self.by_genre[query.genre] if doc_id not in rated]
        return np.array(sorted(rows), np.int64)

    @cached_property
    def learnt(self) -> Learnt:
        """What `bespeak learn` learns from the teachers' ratings. Raises `InputError` if there are too few."""
        found = gather(event for one in self.teachers for event in events_of(one.user_id, (*one.before, *one.after)))
        if not found:
            raise InputError("all users are measured, so nobody is left to learn from: give --every 5")
        return learn(found[TENANT])

    @cached_property
    def by_genre(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for doc_id, genres in self.genres.items():
            for genre in genres:
                found.setdefault(genre, []).append(doc_id)
        return found


def is_movielens(folder: Path) -> bool:
    return (folder / "movies.csv").is_file() and (folder / "ratings.csv").is_file()


def read_movielens(folder: Path, every: int = 1, limit: int | None = None) -> MovieLens:
    """Reads the data, to measure at most `limit` users, those whose id is divisible by `every`. Raises `InputError`."""
    documents, genres = read_movies(folder / "movies.csv")
    viewers = tuple(
        cut_ratings(user_id, found) for user_id, found in sorted(read_ratings(folder / "ratings.csv").items())
    )
    chosen = [viewer for viewer in viewers if viewer.user_id % every == 0]
    queries = tuple(query for viewer in chosen[:limit] for query in genre_queries(viewer, genres))
    if not queries:
        raise InputError(
            f"{folder} gives no query: none of the users to measure liked a movie in the last 30 % of their ratings; "
            "measure more users"
        )
    movies = Collection(folder.resolve().name, documents, ("title", "genres"), (), {})
    return MovieLens(movies, genres, viewers, tuple(v for v in viewers if v.user_id % every), queries)


def read_movies(path: Path) -> tuple[tuple[Document, ...], dict[str, tuple[str, ...]]]:
    documents, genres = [], {}
    for number, (movie_id, title, named) in _rows(path, ("movieId", "title", "genres")):
        if movie_id in genres:
            raise InputError(f"{path}, line {number} repeats the movie {movie_id}: remove one line")
        genres[movie_id] = tuple(named.split("|")) if not named.startswith("(") else ()
        documents.append(Document(movie_id, {"title": title, "genres": " ".join(genres[movie_id])}))
    return tuple(sorted(documents, key=lambda document: document.doc_id)), genres


def read_ratings(path: Path) -> dict[int, list[Rating]]:
    """`user_id → ratings`, in the file's order. Columns beyond the fourth are ignored."""
    ratings: dict[int, list[Rating]] = {}
    for number, (user_id, movie_id, stars, timestamp) in _rows(path, ("userId", "movieId", "rating", "timestamp")):
        try:
            ratings.setdefault(int(user_id), []).append(Rating(movie_id, float(stars), int(timestamp)))
        except ValueError as error:
            raise InputError(f"{path}, line {number} does not hold user, movie, stars and seconds") from error
    return ratings


def _rows(path: Path, header: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    """(line number, the named first columns) of each row after the header."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            if tuple(next(reader, [])[: len(header)]) != header:
                raise InputError(f"{path} does not start with the columns {', '.join(header)}")
            for row in reader:
                if len(row) < len(header):
                    raise InputError(f"{path}, line {reader.line_num} has {len(row)} columns instead of {len(header)}")
                yield reader.line_num, row[: len(header)]
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): --data must name a folder of judged data") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: convert it, then run this again") from error


def cut_ratings(user_id: int, ratings: Sequence[Rating]) -> Viewer:
    ordered = sorted(ratings, key=lambda rating: (rating.timestamp, _number(rating.movie_id)))
    n = int(HISTORY_SHARE * len(ordered) + 1e-9)
    return Viewer(user_id, tuple(ordered[:n]), tuple(ordered[n:]))


def _number(movie_id: str) -> tuple[int, str]:
    return (int(movie_id), "") if movie_id.isdecimal() else (0, movie_id)


def genre_queries(viewer: Viewer, genres: Mapping[str, tuple[str, ...]]) -> Iterator[GenreQuery]:
    """The user's queries, in order of the genres' names; none without a history."""
    liked: dict[str, set[str]] = {}
    for rating in viewer.after:
        if rating.stars >= RELEVANT_FROM and rating.movie_id not in viewer.rated:
            for genre in genres.get(rating.movie_id, ()):
                liked.setdefault(genre, set()).add(rating.movie_id)
    for genre, relevant in sorted(liked.items() if viewer.before else ()):
        yield GenreQuery(f"{viewer.user_id} {genre}", viewer, genre, frozenset(relevant))


class RankingSystem(Protocol):
    """A system, which scores the candidates of a query at each of its stages."""

    @property
    def stages(self) -> Sequence[str]: ...

    def scores(self, query: GenreQuery, rows: Rows, stage: str, /) -> Array:
        """Scores of the movies in `rows`, `(n_rows,)`; ties are broken by doc_id."""
        ...


@dataclass(frozen=True)
class Setup:
    """What the systems are built from; `vectors` are the movies', `(n_movies, dim)`."""

    engine: Engine
    index: str
    encoder: Encoder
    vectors: Matrix
    weights: Weights


def measure_systems(data: MovieLens, systems: Sequence[str], setup: Setup, report: Report = silent) -> list[Cell]:
    """Measures every system, those that use the history at each of its lengths. Raises UsageError and EngineError."""
    check_names("system", systems, SYSTEMS)
    measured = make_systems(list(dict.fromkeys([BASELINE, *systems])), data, setup)
    runs: dict[tuple[str, str], dict[str, list[str]]] = {}
    for done, query in enumerate(data.queries, 1):
        rows = data.candidates(query)
        for name, system in measured.items():
            for stage in system.stages:
                order = rows[best(system.scores(query, rows, stage), DEPTH)]
                doc_ids = [data.movies.documents[row].doc_id for row in order]
                runs.setdefault((name, stage), {})[query.query_id] = doc_ids
        report(done, len(data.queries))
    cells = tabulate(runs, data.qrels, data.groups, BASELINE)
    return [cell for name in dict.fromkeys(systems) for cell in cells if cell.system == name]


def known_systems(data: MovieLens) -> tuple[tuple[str, ...], str]:
    """All systems that these data allow, and why `learnt` is not among them; "" if it is."""
    try:
        _ = data.learnt
    except InputError as error:
        return tuple(name for name in SYSTEMS if name not in LEARNING), f"without the system learnt: {error}"
    return SYSTEMS, ""


def make_systems(systems: Sequence[str], data: MovieLens, setup: Setup) -> dict[str, RankingSystem]:
    order, others = EngineOrder(data, setup.engine, setup.index), OtherRatings(data)
    makers: dict[str, Callable[[], RankingSystem]] = {
        "engine": lambda: order,
        "user": lambda: PersonalOrder(data, setup, order),
        "learnt": lambda: PersonalOrder(data, setup, order, data.learnt),
        "search": lambda: SearchOrder(PersonalOrder(data, setup, order), data, setup, data.learnt),
        "popularity": lambda: Popularity(others),
        "item-knn": lambda: ItemKnn(others),
    }
    return {name: makers[name]() for name in systems}


class EngineOrder:
    """The engine's scores for a genre as a query. Each genre is searched once."""

    stages = (ANY_LENGTH,)

    def __init__(self, data: MovieLens, engine: Engine, index: str) -> None:
        self._data, self._engine, self._index = data, engine, index
        self._known: dict[str, Array] = {}

    def scores(self, query: GenreQuery, rows: Rows, _stage: str = ANY_LENGTH) -> Array:
        if query.genre not in self._known:
            self._known[query.genre] = self._ask(query.genre)
        found: Array = self._known[query.genre][rows]
        return found

    def _ask(self, genre: str) -> Array:
        found = np.zeros(len(self._data.row), np.float32)
        asked = EngineQuery(self._index, (Clause(genre),), size=min(len(found), 10_000))
        for hit in self._engine.search(asked).hits:
            found[self._data.row[hit.doc_id]] = hit.score
        return found


@dataclass(frozen=True, slots=True)
class _Genre:
    """A genre as a query: its reading, the same for every user, and its movies as hits by doc_id."""

    reading: Reading
    hits: Mapping[str, Hit]


class PersonalOrder:
    """The pipeline's order of all candidates instead of a window; for a stranger, the engine's own order."""

    stages = tuple(LENGTHS)

    def __init__(self, data: MovieLens, setup: Setup, order: EngineOrder, learnt: Learnt | None = None) -> None:
        self._data, self._setup, self._order, self._learnt = data, setup, order, learnt
        self._settings = Settings(weights=setup.weights)
        self._profiles: dict[tuple[int, str], Profile] = {}
        self._genres: dict[str, _Genre] = {}

    def scores(self, query: GenreQuery, rows: Rows, stage: str) -> Array:
        profile = self.profile(query.viewer, stage)
        if profile.is_empty:
            return self._order.scores(query, rows)
        genre = self._genre(query, profile)
        doc_ids = [self._data.movies.documents[row].doc_id for row in rows]
        window = Window([genre.hits[doc_id] for doc_id in doc_ids], self._liked(profile), self._text)
        ranking = rank(replace(genre.reading, profile=profile), window, self._settings, self._learnt)
        found = {ranked.hit.doc_id: round(ranked.score, 6) for ranked in ranking.hits}
        return np.array([found[doc_id] for doc_id in doc_ids], np.float32)

    def _text(self, hit: Hit) -> str:
        return hit_text(hit.source, self._data.movies.fields)

    def _genre(self, query: GenreQuery, profile: Profile) -> _Genre:
        if query.genre not in self._genres:
            rows = np.array([self._data.row[doc_id] for doc_id in self._data.by_genre[query.genre]], np.int64)
            scores, vectors = self._order.scores(query, rows).tolist(), self._setup.vectors[rows]
            documents = [self._data.movies.documents[row] for row in rows]
            hits = [
                Hit(document.doc_id, score, 0, document.source, vector)
                for document, score, vector in zip(documents, scores, vectors, strict=True)
            ]
            reading = read(query.genre, profile, Parts(self._settings, Unchanged(), self._setup.encoder))
            self._genres[query.genre] = _Genre(reading, {hit.doc_id: hit for hit in hits})
        return self._genres[query.genre]

    def _liked(self, profile: Profile) -> dict[str, Vector]:
        liked = [doc_id for doc_id in liked_ids(profile) if doc_id in self._data.row]
        return {doc_id: self._setup.vectors[self._data.row[doc_id]] for doc_id in liked}

    def profile(self, viewer: Viewer, stage: str) -> Profile:
        key = (viewer.user_id, stage)
        if key not in self._profiles:
            self._profiles[key] = profile_of(viewer, latest(viewer.before, LENGTHS[stage]))
        return self._profiles[key]


def latest(ratings: Sequence[Rating], n: int) -> Sequence[Rating]:
    return ratings[max(len(ratings) - n, 0) :]


def profile_of(viewer: Viewer, history: Iterable[Rating]) -> Profile:
    """The profile that these ratings give at the end of the viewer's history."""
    user = UserKey(TENANT, str(viewer.user_id))
    known = UserEvents(user, "", preference_events=events_of(viewer.user_id, history))
    return derive(known, _moment(viewer.before[-1]))


def events_of(user_id: int, ratings: Iterable[Rating]) -> list[Event]:
    user = UserKey(TENANT, str(user_id))
    return [new_event(user, "rating", _moment(one), doc_id=one.movie_id, value=one.stars) for one in ratings]


def _moment(rating: Rating) -> datetime:
    return datetime.fromtimestamp(rating.timestamp, UTC)


class SearchOrder:
    """The ranks of a search for the genre, whose window the engine and what was learnt fill. Other movies score 0."""

    stages = ("10", "all")

    def __init__(self, personal: PersonalOrder, data: MovieLens, setup: Setup, learnt: Learnt) -> None:
        self._personal, self._data, self._setup = personal, data, setup
        settings = Settings(weights=setup.weights)
        self._parts = Parts(settings, Unchanged(), setup.encoder, _LearntForAnyTenant(learnt))

    def scores(self, query: GenreQuery, rows: Rows, stage: str) -> Array:
        request = Request(query.genre, self._setup.index, UserKey(TENANT, "viewer"), size=SEARCHED)
        profile = self._personal.profile(query.viewer, stage)
        found = search(self._setup.engine, _OneProfile(profile), request, self._parts).page
        places = {ranked.hit.doc_id: ranked.rank for ranked in found}
        documents = self._data.movies.documents
        return np.array([1 / places.get(documents[row].doc_id, np.inf) for row in rows], np.float32)


class _OneProfile(NamedTuple):
    """A store of one profile."""

    of_all: Profile

    def profile(self, user: UserKey | None, session_id: str, now: datetime) -> Profile:  # noqa: ARG002
        return self.of_all


class _LearntForAnyTenant(NamedTuple):
    """What was learnt, for any tenant."""

    learnt: Learnt

    def of(self, tenant: str) -> tuple[Learnt | None, str]:  # noqa: ARG002
        return self.learnt, ""

    def holds(self, tenant: str) -> bool:  # noqa: ARG002
        return True


class OtherRatings:
    """What all users except the one in question rated, at any time."""

    def __init__(self, data: MovieLens) -> None:
        self.row = data.row
        self._place = {viewer.user_id: n for n, viewer in enumerate(data.viewers)}
        self.rated = np.zeros((len(data.viewers), len(data.row)), np.float32)
        for n, viewer in enumerate(data.viewers):
            columns = [data.row[r.movie_id] for r in (*viewer.before, *viewer.after) if r.movie_id in data.row]
            self.rated[n, columns] = 1
        self._total = self.rated.sum(axis=0)

    def place(self, viewer: Viewer) -> int:
        return self._place[viewer.user_id]

    def counts(self, viewer: Viewer) -> Array:
        """How many others rated each movie, `(n_movies,)`."""
        counts: Array = self._total - self.rated[self.place(viewer)]
        return counts


class Popularity:
    """Scores a movie by how many others rated it."""

    stages = (ANY_LENGTH,)

    def __init__(self, others: OtherRatings) -> None:
        self._others = others

    def scores(self, query: GenreQuery, rows: Rows, _stage: str = ANY_LENGTH) -> Array:
        found: Array = self._others.counts(query.viewer)[rows]
        return found


class ItemKnn:
    """Scores a movie by its cosines to the movies of the history, summed; a movie's vector is its other raters.

    Sarwar et al., "Item-based collaborative filtering recommendation algorithms" (2001), with all neighbours.
    """

    stages = tuple(LENGTHS)

    def __init__(self, others: OtherRatings) -> None:
        self._others = others
        self._known: dict[tuple[int, str], Array] = {}

    def scores(self, query: GenreQuery, rows: Rows, stage: str) -> Array:
        key = (query.viewer.user_id, stage)
        if key not in self._known:
            self._known[key] = self._all(query.viewer, latest(query.viewer.before, LENGTHS[stage]))
        found: Array = self._known[key][rows]
        return found

    def _all(self, viewer: Viewer, history: Iterable[Rating]) -> Array:
        others = self._others
        scale = 1 / np.sqrt(np.maximum(others.counts(viewer), 1))  # (n_movies,)
        columns = [others.row[rating.movie_id] for rating in history if rating.movie_id in others.row]
        together = others.rated[:, columns] @ scale[columns]  # (n_users,)
        together[others.place(viewer)] = 0
        return ((together @ others.rated) * scale).astype(np.float32)
