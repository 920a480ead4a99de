"""The sentences of a result: why a hit is where it is, and what was done to the query and the order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bespeak.records import Evidence, Ranked, Result, Rewrite, Term
from bespeak.show.summary import title_of
from bespeak.show.terminal import clean
from bespeak.statuses import Reason

QUOTE_CHARS = 70
"""Longer queries, statements and titles are cut when quoted."""

ORIGINS = {"turn": "earlier in this session", "statement": "what you said about yourself"}
UNKNOWN_ORIGIN = "your history"

DONE = {
    "click": "clicked",
    "view": "viewed",
    "watch": "watched",
    "add_to_cart": "put in the cart",
    "purchase": "bought",
    "rating": "rated well",
}
"""UBI `action_name` -> what the user did."""


def move_of(ranked: Ranked) -> str:
    """How far the hit moved from the engine's place: ↑3, ↓1 or =; "new" if the engine did not find it as typed."""
    before = ranked.hit.rank
    if not before:
        return "new"
    if before == ranked.rank:
        return "="
    return f"↑{before - ranked.rank}" if before > ranked.rank else f"↓{ranked.rank - before}"


def why(ranked: Ranked, n_hits: int, terms: Sequence[Term] = ()) -> str:
    """One sentence: where the hit moved from, and what moved it; "" if its place needs no reason.

    `n_hits` is how many hits the engine returned for the query as typed. The sentence names the strongest piece of
    evidence, and the second if that gave at least a quarter as much.
    """
    place, before = ranked.rank, ranked.hit.rank
    if before and place > before:
        return f"Down from {before}: other hits gained more."
    reason = ", and ".join(dict.fromkeys(_clauses(ranked, terms)))
    if place == before:
        return f"Still {place}: {reason}." if reason else ""
    if not before:
        found = (
            f"Not among the engine's own {n_hits} hits"
            if ranked.hit.score > 0
            else "Found by meaning, not by its words"
        )
        return f"{found}{': ' + reason if reason else ''}."
    if not reason and ranked.scores[1] > ranked.scores[0]:
        reason = "it matches the query in meaning more than in words"
    return f"Up from {before} of {n_hits}{': ' + reason if reason else ''}."


def _clauses(ranked: Ranked, terms: Sequence[Term]) -> Iterator[str]:
    """A clause for each of the strongest events; words that come from one event share a clause."""
    strongest = sorted(ranked.evidence, key=lambda evidence: -evidence.share)
    named: set[str] = set()
    for evidence in strongest:
        event = evidence.event_id or evidence.text
        if event in named or evidence.share < strongest[0].share / 4:
            continue
        named.add(event)
        if len(named) > 2:
            return
        yield _clause(evidence, ranked, terms)


def _clause(evidence: Evidence, ranked: Ranked, terms: Sequence[Term]) -> str:
    source = next((t.source for t in terms if t.event_id and t.event_id == evidence.event_id), "")
    if evidence.column == "lexical":
        words = [e.text for e in ranked.evidence if e.column == "lexical" and e.event_id == evidence.event_id]
        origin = ORIGINS.get(evidence.action or source, UNKNOWN_ORIGIN)
        return f"{listed(words)} {'come' if len(words) > 1 else 'comes'} from {origin}"
    if evidence.column == "embedding":
        if source:
            origin = ORIGINS.get(source, UNKNOWN_ORIGIN)
            return f"it is close in meaning to {quote(evidence.text)} from {origin}"
        return f"it is close in meaning to your earlier query {quote(evidence.text)}"
    return _user_clause(evidence, ranked.hit.doc_id, title_of(ranked.hit.source), evidence.action or source)


def _user_clause(evidence: Evidence, doc_id: str, title: str, action: str) -> str:
    """The clause for evidence in the column `user`: what the user said, asked or did before."""
    if action == "turn":
        return f"it is similar to your earlier query {quote(evidence.text)}"
    if action == "dislike":
        return f"it is unlike {quote(evidence.text)}, which you disliked"
    if action == "statement":
        return f"you said {quote(evidence.text)}"
    verb = DONE.get(action, "")
    if verb and evidence.text in (title, doc_id):
        return f"you {verb} {quote(evidence.text)} before"
    return f"it is similar to {quote(evidence.text)}, {f'which you {verb}' if verb else f'from {UNKNOWN_ORIGIN}'}"


def in_words(reason: str) -> str:
    """What a reason means, as a clause; any other text as it is."""
    return next((known.meaning for known in Reason if known == reason), reason)


def describe_rewrite(rewrite: Rewrite) -> str:
    """Why the query was searched as typed; "" if it was rewritten."""
    if rewrite.changed:
        return ""
    reason = in_words(rewrite.reason)
    causes = {
        "gated": reason or "the query needs no rewrite",
        "late": "the rewriter took too long",
        "failed": f"the rewriter failed{f' ({reason})' if reason else ''}",
        "unusable": f"the rewriter wrote no usable rewrite ({reason})",
        "dropped": "the rewrite finds nothing useful",
        "off": "no rewriter",
    }
    return f"searched as typed: {causes.get(rewrite.status, 'nothing to add')}"


def describe_order(result: Result) -> str:
    """Whose order the page is in."""
    return {
        "full": "reranked for this user",
        "partial": "partly reranked for this user",
        "failed": "the engine's order: reranking failed",
    }.get(result.rerank, "the engine's order")


def describe_term(term: Term) -> str:
    """Where a word of the rewrite comes from."""
    quoted = quote(term.evidence) if term.evidence else ""
    return {
        "turn": f"{ORIGINS['turn']}: {quoted}" if quoted else ORIGINS["turn"],
        "statement": f"you said {quoted}" if quoted else ORIGINS["statement"],
        "function": "a linking word",
    }.get(term.source, "the model's own word")


def quote(text: str) -> str:
    """The text on one line in quotation marks; a long one is cut."""
    line = clean(text)
    if len(line) > QUOTE_CHARS:
        line = line[: QUOTE_CHARS - 1].rsplit(" ", 1)[0] + "…"
    return f"“{line}”"


def listed(words: Sequence[str]) -> str:
    """“a”, “b” and “c”."""
    quoted = [quote(word) for word in dict.fromkeys(words)]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
