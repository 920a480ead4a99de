"""The rewrites that gained and lost most, and what they have in common."""

from dataclasses import replace

import pytest

from bespeak.errors import UsageError
from bespeak.evaluation.examples import find_examples, origin
from bespeak.evaluation.topics import Collection, Topic
from bespeak.parts import Parts
from bespeak.records import Document, Term
from bespeak.rewriting.grounding import attribute
from bespeak.settings import Settings
from bespeak_cli.examples import as_examples, examples_data
from fakes import ScriptedReader, ScriptedRewriter

TOPICS = (
    Topic(
        "1-1", "and there?", ("I like jazz.",), (("hotels in Ghent", "Many."), ("trains", "From Brussels to Ghent."))
    ),
    Topic("1-2", "what does Zappa cost", (), (("bands", "Zappa"),)),
    Topic("1-3", "left alone", (), (("bands", "Zappa"),)),
    Topic("1-4", "no change in rank", (), (("bands", "Zappa"),)),
)
REWRITES = {
    "and there?": "trains there jazz hotels Brussels in",
    "what does Zappa cost": "what does cost bands",
    "no change in rank": "no change in rank bands",
}


class Attributing(ScriptedRewriter):
    """Names where words came from, as a language model's rewrite does."""

    def rewrite(self, query, profile, budget_ms=None):
        made = super().rewrite(query, profile, budget_ms)
        return replace(made, terms=attribute(made.text, query, profile))


def runs(system="rewrite", stage="hybrid"):
    """d1 is relevant; each rewrite moves it from one place to another."""
    first, second = ["d1", "d2"], ["d2", "d1"]
    return {
        ("raw", "lexical"): {topic.query_id: second for topic in TOPICS},
        (system, "lexical"): {topic.query_id: second for topic in TOPICS},
        ("raw", stage): {"1-1": second, "1-2": first, "1-3": second, "1-4": first},
        (system, stage): {"1-1": first, "1-2": second, "1-3": first, "1-4": first},
    }


def found(n=5, context=None, **options):
    documents = tuple(Document(f"d{i}", {"text": "x"}) for i in (1, 2))
    collection = Collection("small", documents, ("text",), TOPICS, {topic.query_id: {"d1": 1} for topic in TOPICS})
    parts = Parts(Settings(), Attributing(REWRITES), None, context=context)
    return find_examples(collection, parts, runs(**options), n)


def test_only_rewrites_that_gained_or_lost_at_the_stage_hybrid_are_shown():
    examples = found()
    assert (examples.system, examples.stage, examples.n_queries) == ("rewrite", "hybrid", 4)
    second_place = pytest.approx(0.6309, abs=1e-4)  # 1 / log2(3)
    assert [(one.query_id, one.typed, one.rewritten) for one in examples.best] == [("1-1", second_place, 1.0)]
    assert [one.query_id for one in examples.worst] == ["1-2"]
    assert [one.last_query for one in examples.best] == ["trains"]
    assert {kind: one.n_rewrites for kind, one in examples.common.items()} == {"best": 1, "worst": 1, "all": 3}


def test_a_query_that_stands_alone_has_no_rewrite_to_show():
    examples = found(context=ScriptedReader({"what does Zappa cost": ["bands"]}))
    assert (examples.best, [one.query_id for one in examples.worst]) == ((), ["1-2"])
    assert examples.common["all"].n_rewrites == 1


def test_without_hybrid_the_first_stage_counts():
    examples = found(stage="dense", system="rewrite-alone")
    assert (examples.system, examples.stage, examples.best, examples.worst) == ("rewrite-alone", "lexical", (), ())
    assert examples.common["best"].words_added == 0


def test_added_words_are_counted_by_origin():
    (best,) = found().best
    assert dict(best.added) == {
        "trains": "last query", "jazz": "statements", "hotels": "earlier turns", "Brussels": "last answer",
        "in": "function words",
    }  # fmt: skip
    assert origin(Term("new", "free"), TOPICS[0].profile) == "nowhere"


def test_names_added_and_kept_and_words_lost_are_shares_of_the_rewrites():
    common = found().common
    best, worst = common["best"], common["worst"]
    assert (best.name_added, best.name_typed, best.word_lost) == (1, 0, 0)
    assert (worst.name_added, worst.name_typed, worst.word_lost) == (0, 0, 1)  # Zappa is lost
    assert sum(best.origins.values()) == pytest.approx(1)


def test_a_run_without_rewrites_says_so():
    with pytest.raises(UsageError, match="rewrite-alone"):
        found(system="human")


def test_the_text_fits_80_columns_and_shows_each_query_with_its_turn():
    text = as_examples(found())
    assert max(map(len, text.splitlines())) <= 80
    assert "by nDCG@10 of rewrite against raw, hybrid" in " ".join(text.split())
    assert "best  0.631 -> 1.000  1-1\n  last turn  trains\n  query      and there?\n  rewrite    trains there" in text
    assert "worst 1.000 -> 0.631  1-2\n" in text
    assert [line.split()[-3:] for line in text.splitlines() if line.startswith("a word of the query lost")] == [
        ["0%", "100%", "33%"]
    ]


def test_the_json_holds_the_same():
    data = examples_data(found())
    assert data["best"][0]["added"][0] == {"text": "trains", "origin": "last query"}
    assert set(data["common"]) == {"best", "worst", "all"}
