"""Every status and reason that Bespeak reports, with its meaning. The guide's tables are generated from here."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

Described = TypeVar("Described", bound="DescribedValue")


class DescribedValue(StrEnum):
    """A value with a sentence that says what it means."""

    meaning: str

    def __new__(cls: type[Described], value: str, meaning: str) -> Described:
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member


class RewriteStatus(DescribedValue):
    FULL = "full", "the rewriter answered; its answer may equal the query"
    CACHED = "cached", "as `full`, from an earlier request"
    GATED = "gated", "the query was left as typed; the reason says why"
    LATE = "late", "the rewriter took longer than its budget; the query went out as typed"
    FAILED = "failed", "the rewriter failed; the query went out as typed"
    UNUSABLE = "unusable", "the rewriter wrote nothing usable, so the query went out as typed; the reason says why"
    DROPPED = "dropped", "the rewrite found nothing useful in the index; the query went out as typed"
    OFF = "off", "no rewriter ran"


class RerankStatus(DescribedValue):
    FULL = "full", "every hit of the window was ranked by all scores"
    PARTIAL = "partial", "some or all hits were ranked without an embedding"
    FAILED = "failed", "a stage failed, so the order is the engine's own; the reason names the stage"
    OFF = "off", "the order is the engine's own; the reason says why"


class Reason(DescribedValue):
    """Why an answer, or a part of it, is not personal."""

    # The order is promised to the client, or the answer cannot be reordered.
    SCROLL = "scroll", "the search is a scroll"
    SLICE = "slice", "the search is a slice of a scroll or a point in time"
    SEARCH_AFTER = "search_after", "the search pages by sort values"
    SORT = "sort", "the search sorts by something other than the score"
    SIZE_0 = "size_0", "the search asks for no hits"
    EXPLAIN = "explain", "the search asks Elasticsearch to explain its scores"
    PROFILE = "profile", "the search asks Elasticsearch to profile it"
    NO_IDS = "no_ids", "the answer would contain no ids"
    FORMAT = "format", "the answer would not be JSON"
    # The search itself.
    NO_TEXT = "no_text", "the query contains no letter and no digit"
    AMBIGUOUS = "ambiguous", "the query contains several texts, and nothing says which one the user typed"
    UNREADABLE = "unreadable", "the body is not JSON, or is compressed by something other than gzip"
    TOO_LARGE = "too_large", "the body is longer than 16 MB"
    TOO_MANY_SEARCHES = "too_many_searches", "the search is beyond the first 20 of its request"
    ASYNC_SEARCH = "async_search", "asynchronous searches always pass untouched"
    MSEARCH_TEMPLATE = "msearch_template", "searches by several templates always pass untouched"
    # The user.
    ANONYMOUS = "anonymous", "the body has `ext.bespeak` or `ext.ubi` but names no user"
    UNSIGNED = "unsigned", "the user is named by a plain id where a signed token is required"
    BAD_TOKEN = "bad_token", "the token is not valid"
    BAD_IDENTITY = "bad_identity", "the user, session or tenant is not a valid id"
    CONTROL = "control", "the user is outside the share of users that are personalised"
    STRANGER = "stranger", "nothing is known about the user"
    REFUSED = "refused", "the user paused personalisation"
    # The query says exactly what it means.
    QUOTED = "quoted", "the whole query is quoted"
    IDENTIFIER = "identifier", "the query is a code, a number, an address or a path"
    OPERATORS = "operators", "the query uses query syntax"
    BEYOND_WINDOW = "beyond_window", "the page lies beyond the window that is ranked"
    ENGINE_REFUSED = "engine_refused", "Elasticsearch refused the search, and the client sees its refusal"
    # The session plays no part, and what the user liked still counts.
    STANDS_ALONE = "stands_alone", "the query does not depend on anything the user said before"
    NO_HISTORY = "no_history", "the session has no earlier query and the user made no statement"
    TOO_LONG = "too_long", "the query has more than 60 words or 500 characters"
    OTHER_LANGUAGE = "other_language", "most of the query is not in Latin letters"
    RESTING = "resting", "the rewriter was late or failed five times in a row and rests for 30 s"
    # The language model's text is not a rewrite.
    NO_END = "no_end", "it did not end within 64 tokens"
    STRAINED = "strained", "the words it was allowed to write were too unlikely"
    REPEATS_ITSELF = "repeats_itself", "it repeats itself"
    REPEATS_PROMPT = "repeats_prompt", "it continues the conversation instead"
    REPEATS_ANSWER = "repeats_answer", "it repeats a whole earlier answer"
    REPEATS_QUERY = "repeats_query", "it repeats an earlier query of the session"
    SAYS_NOTHING = "says_nothing", "it contains none of the words that say what the query is about"
    OTHER_SCRIPT = "other_script", "it is in another script than the query"
    # Only a part of the ranking is left out.
    NO_ENCODER = "no_encoder", "there is no encoder, so hits are ranked by their words alone"
    LEARNT_UNREADABLE = (
        "learnt_unreadable",
        "the file that `bespeak learn` wrote is damaged or cannot be read: run it again; the log names the file",
    )


REWRITE_REASONS = (Reason.STANDS_ALONE, Reason.NO_HISTORY, Reason.TOO_LONG, Reason.OTHER_LANGUAGE, Reason.RESTING)
"""The session plays no part; the hits may still be ranked by what the user liked."""
UNUSABLE_REASONS = (
    Reason.NO_END, Reason.STRAINED, Reason.REPEATS_ITSELF, Reason.REPEATS_PROMPT, Reason.REPEATS_ANSWER,
    Reason.REPEATS_QUERY, Reason.SAYS_NOTHING, Reason.OTHER_SCRIPT,
)  # fmt: skip
"""Only the rewrite is left out, because the text is not one."""
PART_REASONS = (Reason.NO_ENCODER, Reason.LEARNT_UNREADABLE)
"""A part of the ranking is left out."""
ORDER_REASONS = tuple(reason for reason in Reason if reason not in (*REWRITE_REASONS, *UNUSABLE_REASONS, *PART_REASONS))
"""The order stays the engine's own."""


class Stage(DescribedValue):
    """Where a search failed. With an `Ending`, as in `encode_late`, it is the reason for a failed ranking."""

    PROFILE = "profile", "the store of profiles: look at its disk, its lock or the credentials of its cluster"
    ENCODE = "encode", "encoding the query: look at the CPU, `--rerank-ms` and `--model-runs`"
    EMBED = "embed", "the hits' vectors: look at the CPU, `--rerank-ms`, `--model-runs` and the client's privileges"
    ENGINE = "engine", "Elasticsearch did not answer"
    ENGINE_STATUS = "engine_status", "Elasticsearch failed or was overloaded"
    ENGINE_ANSWER = "engine_answer", "Elasticsearch's answer could not be read"
    TEMPLATE = "template", "Elasticsearch's rendering of the template could not be read"
    PREPARE = "prepare", "a fault of Bespeak: the log names its kind; please report it"
    PERSONALISE = "personalise", "a fault of Bespeak: the log names its kind; please report it"
    PLAN = "plan", "a fault of Bespeak: the log names its kind; please report it"
    RANK = "rank", "a fault of Bespeak: the log names its kind; please report it"
    PAGE = "page", "a fault of Bespeak: the log names its kind; please report it"


class Ending(DescribedValue):
    """How a stage failed."""

    LATE = "late", "it took longer than its budget"
    BUSY = "busy", "no model run was free in time"
    RESTING = "resting", "it failed five times in a row and rests for 30 s"
    REFUSED = "refused", "Elasticsearch refused a request of Bespeak's own"


def stage_reason(stage: Stage, ending: Ending | None = None) -> str:
    """The reason for a failed ranking.

    >>> stage_reason(Stage.ENCODE), stage_reason(Stage.ENCODE, Ending.LATE)
    ('encode', 'encode_late')
    """
    return f"{stage}_{ending}" if ending else str(stage)
