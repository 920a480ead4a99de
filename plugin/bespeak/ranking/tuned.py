"""Constants that were chosen by measuring, each with the part of the documentation that shows the measurement."""

TYPED_SHARE = 0.9
"""Share of the query as typed in the query's vector if it finds the same hits with and without its session
(docs/experiments/ranking.md#agreement-with-the-query-as-typed)."""
AGREEMENT, AGREEMENT_DEPTH = 0.6, 10
"""Two orders find the same hits if they share at least the first value, a fraction, of their first hits
(docs/experiments/ranking.md#agreement-with-the-query-as-typed)."""
TYPED_SHARE_BESIDE_SESSION = 0.5
"""Weight of the query as typed in its vector beside the query read with its session
(docs/experiments/ranking.md#the-query-beside-its-session-vector)."""
PICKED_WEIGHT = 0.3
"""BM25 weight of the words picked from the session, beside the query's 1.0
(docs/experiments/ranking.md#picked-words)."""
LAST_TURN_BESIDE_SESSION = 0.4
"""Factor on the weight and the share of the last turn if words are picked from the session or the session is read with
the query (docs/experiments/ranking.md#the-last-turn-beside-picked-words)."""
TEXT_SHARE, TEXT_FULL = 0.4, 5.0
"""How much the cosine to the user's vector counts beside what was learnt, in standard deviations of both:
share * n / (n + full) for n preferences (docs/experiments/ranking.md#text-beside-what-was-learnt)."""
BROAD_FROM, BROAD_AT = 0.05, 0.2
"""Fractions of the window that hold all words of the query: up to the first the query is specific, from the second on
it is broad (docs/experiments/ranking.md#broad-queries)."""
LEARNT_WINDOWS = 4
"""How many windows' worth of the documents that the user would like most are searched for hits to add
(docs/experiments/ranking.md#bringing-in-what-was-learnt)."""
MAX_PREFERENCES = 50
"""How many of the strongest preferences make the user's vector."""
LAST_TURN_CHARS = 400
"""Characters of the last turn's query and response that are searched and embedded."""
EMBEDDED_CHARS = 1_000
"""Characters of a document's text that are embedded and searched for the words of the query."""
