import copy
import json
import urllib.error
import urllib.request
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bespeak.proxy.body.leaves import MAX_LEAVES, find_leaves
from bespeak.proxy.body.query import Typed, find_typed, with_alternatives, words_query
from bespeak.records import Clause

REWRITE = [Clause("waterproof hiking boots", 2.0)]
MATCH = {"match": {"title": "boots"}}


# Bodies of all forms, each with the texts that were planted in it.


class Planted(NamedTuple):
    path: tuple
    kind: str
    text: str
    scoring: bool
    joins: tuple = ()

    def under(self, steps, scoring=True, join=()):
        return Planted((*steps, *self.path), self.kind, self.text, self.scoring and scoring, (*join, *self.joins))


words = st.sampled_from(["boots", "red boots", "Red  boots", "wool hat", "hat"])
fields = st.sampled_from(["title", "body", "title.en", "year", "parts.name"])
options = st.fixed_dictionaries({}, optional={
    "boost": st.sampled_from([0, 2, 0.5, "1.5"]), "_name": st.just("asked"), "analyzer": st.just("whitespace"),
})  # fmt: skip
matching = st.fixed_dictionaries({}, optional={
    "operator": st.just("and"), "minimum_should_match": st.just("75%"), "zero_terms_query": st.just("all"),
    "fuzziness": st.just("AUTO"),
})  # fmt: skip


@st.composite
def by_field(draw):
    kind = draw(st.sampled_from(["match", "match_phrase", "match_phrase_prefix", "match_bool_prefix"]))
    text, name = draw(words), draw(fields)
    if draw(st.booleans()):
        return {kind: {name: text}}, [Planted((kind, name), kind, text, True)]
    more = draw(matching) if kind == "match" else {}
    return {kind: {name: {"query": text, **draw(options), **more}}}, [Planted((kind, name, "query"), kind, text, True)]


@st.composite
def by_fields(draw):
    kind = draw(st.sampled_from(["multi_match", "combined_fields", "query_string", "simple_query_string"]))
    text, more = draw(words), draw(options)
    names = draw(st.lists(st.sampled_from(["title^2", "body", "title.en"]), min_size=1, max_size=3, unique=True))
    if kind == "combined_fields":
        names, more = [name for name in names if name != "title.en"] or ["body"], dict(more)
        more.pop("analyzer", None)
    if kind == "multi_match":
        types = ["best_fields", "most_fields", "cross_fields", "phrase", "phrase_prefix", "bool_prefix"]
        more = more | draw(st.fixed_dictionaries({}, optional={"type": st.sampled_from(types)}))
    if kind == "query_string":
        more = more | draw(
            st.sampled_from([{"default_field": "title"}, {"default_operator": "AND"}, {"type": "phrase"}])
        )
    if kind == "combined_fields" or draw(st.booleans()):
        more = {"fields": names, **{k: v for k, v in more.items() if k != "default_field"}}
    return {kind: {"query": text, **more}}, [Planted((kind, "query"), kind, text, True)]


@st.composite
def by_meaning(draw):
    text = draw(words)
    built = {"field": "vector", "query_vector_builder": {"text_embedding": {"model_id": "m", "model_text": text}}}
    return draw(st.sampled_from([
        ({"semantic": {"field": "body", "query": text}}, [Planted(("semantic", "query"), "semantic", text, True)]),
        ({"sparse_vector": {"field": "body", "inference_id": "i", "query": text}},
         [Planted(("sparse_vector", "query"), "sparse_vector", text, True)]),
        ({"text_expansion": {"body": {"model_id": "m", "model_text": text}}},
         [Planted(("text_expansion", "body", "model_text"), "text_expansion", text, True)]),
        ({"knn": built}, [Planted(("knn", *BUILDER), "knn", text, True)]),
    ]))  # fmt: skip


BUILDER = ("query_vector_builder", "text_embedding", "model_text")


@st.composite
def intervals(draw):
    text, name = draw(words), draw(st.sampled_from(["title", "body"]))
    rule = {"match": {"query": text, "max_gaps": 3}}
    if draw(st.booleans()):
        return {"intervals": {name: rule}}, [Planted(("intervals", name, "match", "query"), "intervals", text, True)]
    steps = ("intervals", name, "all_of", "intervals", 1, "match", "query")
    prefix = {"prefix": {"prefix": "boo"}}
    return {"intervals": {name: {"all_of": {"intervals": [prefix, rule]}}}}, [Planted(steps, "intervals", text, True)]


UNTYPED = [
    {"match_all": {}}, {"term": {"kind": "shoe"}}, {"range": {"year": {"gte": 2000}}}, {"match": {"year": 1999}},
    {"match": {"title": {"query": 7}}}, {"match": {"flag": True}}, {"ids": {"values": ["1"]}},
    {"match": {"title": " "}}, {"prefix": {"kind": "sh"}}, {"exists": {"field": "title"}}, {"bool": {}},
    {"more_like_this": {"fields": ["title"], "like": "boots"}}, {"fuzzy": {"kind": "shoe"}},
    {"bool": {"must_not": [{"match": {"title": "shoes"}}]}}, {"wrapper": {"query": "eyJtYXRjaF9hbGwiOnt9fQ=="}},
    {"span_term": {"title": "boots"}},
]  # fmt: skip
UNKNOWN = [{"later": {"query": {"match": {"title": "boots"}}}}, {"later": [1]}]


def without_text(queries):
    return st.sampled_from(queries).map(lambda query: (query, []))


lexical = by_field() | by_fields() | by_field() | intervals() | without_text(UNTYPED)
leaves = lexical | by_meaning() | without_text(UNKNOWN)


def many(inner):
    return st.lists(inner, max_size=3)


def gather(pairs, steps, scoring=True, join=()):
    """The queries of a list, and what is planted in them, seen from above it."""
    queries = [query for query, _ in pairs]
    planted = [p.under((*steps, i), scoring, join) for i, (_, found) in enumerate(pairs) for p in found]
    return queries, planted


@st.composite
def in_bool(draw, inner):
    asked, planted = draw(st.sampled_from([{}, {"boost": 2.0}, {"minimum_should_match": 1}])), []
    for member in draw(st.lists(st.sampled_from(["must", "should", "filter"]), min_size=1, unique=True)):
        if draw(st.booleans()):
            query, found = draw(inner)
            asked = asked | {member: query}
            planted += [p.under(("bool", member), member != "filter") for p in found]
        else:
            queries, found = gather(draw(many(inner)), ("bool", member), member != "filter")
            asked = asked | {member: queries}
            planted += found
    if draw(st.booleans()):
        asked = asked | {"must_not": [{"match": {"title": "shoes"}}]}
    return {"bool": asked}, planted


COMPOUND = [
    ("constant_score", "filter", {"boost": 2}, False),
    ("function_score", "query", {"functions": [{"filter": {"match": {"title": "x"}}, "weight": 2}]}, True),
    ("nested", "query", {"path": "parts", "score_mode": "max"}, True),
    ("nested", "query", {"path": "parts", "inner_hits": {"highlight": {"fields": {"parts.name": {}}}}}, True),
    ("boosting", "positive", {"negative": {"match": {"title": "x"}}, "negative_boost": 0.5}, True),
]
UNCOMMON = [
    ("script_score", "query", {"script": {"source": "_score"}}, True),
    ("has_child", "query", {"type": "answer", "score_mode": "max"}, True),
    ("has_parent", "query", {"parent_type": "question", "score": True}, True),
    ("pinned", "organic", {"ids": ["1"]}, True),
    ("rule", "organic", {"match_criteria": {"query_string": "x"}, "ruleset_ids": ["r"]}, True),
]


@st.composite
def in_one(draw, inner, kinds):
    query, found = draw(inner)
    kind, member, more, scoring = draw(st.sampled_from(kinds))
    join = (kind,) if kind in ("nested", "has_child", "has_parent") else ()
    return {kind: {member: query, **more}}, [p.under((kind, member), scoring, join) for p in found]


@st.composite
def in_dis_max(draw, inner):
    queries, planted = gather(draw(many(inner)), ("dis_max", "queries"))
    return {"dis_max": {"queries": queries, "tie_breaker": 0.3}}, planted


def trees(leaves, kinds):
    return st.recursive(leaves, lambda inner: in_bool(inner) | in_one(inner, kinds) | in_dis_max(inner), max_leaves=8)


queries = trees(leaves, COMPOUND + UNCOMMON)


@st.composite
def knn(draw):
    if draw(st.booleans()):
        return {"field": "vector", "query_vector": [1.0, 0.0], "k": 5, "filter": {"match": {"title": "x"}}}, []
    text = draw(words)
    built = {"field": "vector", "query_vector_builder": {"text_embedding": {"model_text": text}}, "k": 5}
    return built, [Planted(BUILDER, "knn", text, True)]


@st.composite
def standard(draw):
    query, found = draw(queries)
    asked = {"standard": {"query": query, "filter": {"match": {"title": "x"}}}}
    return asked, [p.under(("standard", "query")) for p in found]


@st.composite
def short(draw):
    kind, text = draw(st.sampled_from(["rrf", "linear"])), draw(words)
    return {kind: {"query": text, "fields": ["title", "body"]}}, [Planted((kind, "query"), kind, text, True)]


@st.composite
def in_many(draw, inner):
    kind, weighted = draw(st.sampled_from([("rrf", False), ("linear", True), ("later", False)]))
    pairs = draw(many(inner))
    if weighted:
        pairs = [({"retriever": r, "weight": 2}, [p.under(("retriever",)) for p in found]) for r, found in pairs]
    retrievers, planted = gather(pairs, (kind, "retrievers"))
    return {kind: {"retrievers": retrievers, "rank_window_size": 50}}, planted


@st.composite
def around(draw, inner):
    retriever, found = draw(inner)
    kind = draw(st.sampled_from(
        ["text_similarity_reranker", "rescorer", "rule", "pinned", "random_reranker", "diversify", "later"]
    ))  # fmt: skip
    planted = [p.under((kind, "retriever")) for p in found]
    more = {"rescore": {"query": {"rescore_query": {"match": {"title": "x"}}}}} if kind == "rescorer" else {}
    if kind == "text_similarity_reranker":
        more = {"inference_text": draw(words), "field": "body"}
        planted = [Planted((kind, "inference_text"), kind, more["inference_text"], True), *planted]
    return {kind: {"retriever": retriever, **more}}, planted


plain_retriever = (
    standard() | knn().map(lambda pair: ({"knn": pair[0]}, [p.under(("knn",)) for p in pair[1]])) | short()
)
retrievers = st.recursive(plain_retriever, lambda inner: in_many(inner) | around(inner), max_leaves=4)

WITH_WORDS = {
    "match", "match_phrase", "match_phrase_prefix", "match_bool_prefix", "intervals",
    "multi_match", "combined_fields", "query_string", "simple_query_string",
}  # fmt: skip

NOISE = {
    "post_filter": {"match": {"title": "filtered"}}, "min_score": 0.1, "sort": ["_score"], "track_total_hits": True,
    "aggs": {"a": {"filter": {"match": {"title": "counted"}}}}, "suggest": {"text": "bots"}, "_source": ["title"],
    "rescore": {"query": {"rescore_query": {"match": {"title": "rescored"}}}},
    "highlight": {"fields": {"title": {}}}, "collapse": {"field": "kind", "inner_hits": {"highlight": {"fields": {}}}},
}  # fmt: skip


@st.composite
def bodies(draw):
    body, planted = {}, []
    if draw(st.booleans()):
        query, found = draw(queries)
        body, planted = {"query": query}, [p.under(("query",)) for p in found]
        if draw(st.booleans()):
            vectors = draw(st.lists(knn(), min_size=1, max_size=2))
            body["knn"], found = gather(vectors, ("knn",))
            if len(vectors) == 1 and draw(st.booleans()):
                body["knn"], found = vectors[0][0], [p.under(("knn",)) for p in vectors[0][1]]
            planted += found
    else:
        retriever, found = draw(retrievers)
        body, planted = {"retriever": retriever}, [p.under(("retriever",)) for p in found]
    noise = draw(st.lists(st.sampled_from(sorted(NOISE)), unique=True))
    return body | {name: NOISE[name] for name in noise}, planted


# What holds for every body.


@given(bodies())
def test_exactly_the_planted_texts_are_found(case):
    body, planted = case
    found = [(f.text_path, f.kind, f.text, f.scoring, tuple(w.kind for w in f.wrappers)) for f in find_leaves(body)]
    assert sorted(found, key=repr) == sorted(map(tuple, planted), key=repr)
    assert all(at(body, leaf.text_path) == leaf.text for leaf in find_leaves(body))


@given(
    bodies(), st.sampled_from(["", "boots", "blue coat"]), st.sampled_from(["", "query", "*.*", "query.bool.must.0"])
)
def test_a_body_is_never_changed_in_place(case, user_query, path):
    body, _ = case
    before = copy.deepcopy(body)
    typed = find_typed(body, user_query, path)
    words_query(typed, REWRITE)
    with_alternatives(body, typed, REWRITE)
    assert body == before


@given(bodies())
def test_every_other_node_comes_out_equal(case):
    body, _ = case
    typed = Typed("boots", find_leaves(body))
    found = with_alternatives(body, typed, REWRITE)
    for leaf in typed.leaves:
        if not leaf.scoring or leaf.kind not in WITH_WORDS:
            continue
        choice = at(found, leaf.path)
        assert choice["bool"]["should"][0] == at(body, leaf.path)
        assert (len(choice["bool"]["should"]), choice["bool"]["minimum_should_match"]) == (2, 1)
        found = put(found, leaf.path, at(body, leaf.path))
    assert without_highlight_queries(found) == body


@given(bodies())
def test_equal_texts_are_one_text(case):
    body, planted = case
    typed = find_typed(body)
    counted = [p for p in planted if p.scoring] or planted
    texts = {" ".join(p.text.split()).casefold() for p in counted}
    assert typed.reason == ("no_text" if not texts else "ambiguous" if len(texts) > 1 else "")
    expected = [] if typed.reason else counted
    assert len(typed.leaves) == len(expected)
    assert {leaf.text_path for leaf in typed.leaves} == {p.path for p in expected}


@given(bodies(), st.data())
def test_each_text_is_found_by_its_path(case, data):
    body, planted = case
    assume(planted)
    wanted = data.draw(st.sampled_from(planted))
    typed = find_typed(body, path=".".join(map(str, wanted.path)))
    assert (typed.text, typed.reason) == (wanted.text, "")
    assert wanted.path in [leaf.text_path for leaf in typed.leaves]


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["boots", "", "query", "match"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["query", "match", "bool", "must", "fields", "retriever", "knn", "title", "boost", "standard"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=10,
)


@settings(max_examples=300)
@given(bodies(), junk, st.data())
def test_no_json_raises(case, value, data):
    body, _ = case
    path = ()
    while isinstance(node := at(body, path), dict | list) and node and data.draw(st.booleans()):
        path = (
            *path,
            data.draw(st.sampled_from(sorted(node, key=str) if isinstance(node, dict) else range(len(node)))),
        )
    broken = put(body, path, value)
    broken = broken if isinstance(broken, dict) else {"query": broken}
    typed = find_typed(broken, "boots")
    assert typed.text == "boots"
    words_query(Typed("boots", find_leaves(broken)), REWRITE)
    with_alternatives(broken, Typed("boots", find_leaves(broken)), REWRITE)


def at(node, path):
    for step in path:
        node = node[step]
    return node


def put(node, path, value):
    if not path:
        return value
    copied = list(node) if isinstance(node, list) else dict(node)
    copied[path[0]] = put(node[path[0]], path[1:], value)
    return copied


def without_highlight_queries(node):
    if isinstance(node, dict):
        return {name: without_highlight_queries(value) for name, value in node.items() if name != "highlight_query"}
    return [without_highlight_queries(value) for value in node] if isinstance(node, list) else node


# Single decisions.


def test_two_texts_are_ambiguous_until_one_is_named():
    body = {"query": {"bool": {"must": [{"match": {"title": "boots"}}, {"match": {"brand": {"query": "Acme"}}}]}}}
    assert find_typed(body) == Typed("", (), "ambiguous")
    assert [leaf.fields for leaf in find_typed(body, "BOOTS ").leaves] == [("title",)]
    for path in ("query.bool.must.0.match.title", "query.bool.must.0", "query.*.must.*.match.title", "*.*.*.0"):
        assert find_typed(body, path=path).text == "boots", path
    assert find_typed(body, path="query.bool.must.1.match.brand").text == "Acme"
    assert find_typed(body, path="query.bool.must.1.match.brand.query").text == "Acme"
    assert find_typed(body, "boots", path="query.bool.must").text == "boots"
    assert find_typed(body, path="query.bool.must").reason == "ambiguous"
    assert find_typed(body, path="query.bool.should").reason == "ambiguous"


def test_the_typed_text_may_differ_from_the_leafs_or_be_in_none():
    body = {"query": {"bool": {"must": [
        {"query_string": {"query": "(boots OR boot) AND year:2020", "fields": ["title"]}}, {"match": {"brand": "Acme"}},
    ]}}}  # fmt: skip
    assert [leaf.kind for leaf in find_typed(body, "Boots").leaves] == ["query_string"]
    assert find_typed(body, "winter shoes") == Typed("winter shoes", ())
    assert words_query(find_typed(body, "winter shoes"), REWRITE) is None
    assert find_typed({"query": {"match_all": {}}}, " shoes ") == Typed("shoes", ())
    assert find_typed({}, "  ") == Typed("", (), "no_text")


def test_a_filter_counts_if_there_is_nothing_else():
    filtered = {"query": {"bool": {"filter": [{"match": {"title": "boots"}}]}}}
    assert find_typed(filtered).text == "boots"
    assert with_alternatives(filtered, find_typed(filtered), REWRITE) == filtered
    both = {"query": {"bool": {"must": MATCH, "filter": [{"match": {"brand": "Acme"}}]}}}
    assert [leaf.fields for leaf in find_typed(both).leaves] == [("title",)]
    assert find_typed(both, "acme").leaves[0].fields == ("brand",)


def test_a_body_with_very_many_texts_has_no_typed_text():
    body = {"query": {"bool": {"should": [MATCH] * (MAX_LEAVES + 1)}}}
    assert find_typed(body).reason == "ambiguous"
    assert find_typed(body, "boots") == Typed("boots", ())
    assert find_typed({"query": {"bool": {"should": [MATCH] * MAX_LEAVES}}}).text == "boots"


@pytest.mark.parametrize("member", ["query", "retriever"])
def test_deeply_nested_parts_are_opaque(member):
    deep = MATCH if member == "query" else {"standard": {"query": MATCH}}
    for _ in range(100_000):
        deep = {"bool": {"must": [deep]}} if member == "query" else {"rescorer": {"retriever": deep}}
    assert find_typed({member: deep}).reason == "no_text"
    rules = {"match": {"query": "boots"}}
    for _ in range(100_000):
        rules = {"all_of": {"intervals": [rules]}}
    assert find_typed({"query": {"intervals": {"title": rules}}}).reason == "no_text"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (MATCH, {"match": {"title": {"query": "waterproof hiking boots", "boost": 2.0, "lenient": True}}}),
        (
            {"match": {"title": {"query": "boots", "operator": "and", "fuzziness": 2, "zero_terms_query": "all",
                                 "analyzer": "english", "boost": 3, "_name": "n", "minimum_should_match": 2}}},
            {"match": {"title": {"query": "waterproof hiking boots", "analyzer": "english", "boost": 6.0,
                                 "lenient": True}}},
        ),
        (
            {"match_phrase": {"title": {"query": "boots", "slop": 2}}},
            {"match": {"title": {"query": "waterproof hiking boots", "boost": 2.0, "lenient": True}}},
        ),
        (
            {"multi_match": {"query": "boots", "fields": ["title^3", "body"], "type": "phrase", "tie_breaker": 0.3}},
            {"multi_match": {"query": "waterproof hiking boots", "fields": ["title^3", "body"], "type": "best_fields",
                             "tie_breaker": 0.3, "boost": 2.0, "lenient": True}},
        ),
        (
            {"combined_fields": {"query": "boots", "fields": ["title", "body"], "operator": "and"}},
            {"combined_fields": {"query": "waterproof hiking boots", "fields": ["title", "body"], "boost": 2.0}},
        ),
        (
            {"query_string": {"query": "boots", "default_field": "title", "default_operator": "AND"}},
            {"multi_match": {"query": "waterproof hiking boots", "fields": ["title"], "type": "best_fields",
                             "boost": 2.0, "lenient": True}},
        ),
        (
            {"simple_query_string": {"query": "boots", "flags": "NONE"}},
            {"multi_match": {"query": "waterproof hiking boots", "type": "most_fields", "boost": 2.0, "lenient": True}},
        ),
        (
            {"function_score": {"boost": 2, "query": {"nested": {"path": "parts", "boost": 3, "inner_hits": {},
             "query": {"match": {"parts.name": "boots"}}, "score_mode": "max", "_name": "n"}}}},
            {"nested": {"path": "parts", "score_mode": "max", "query": {"match": {"parts.name": {
                "query": "waterproof hiking boots", "boost": 12.0, "lenient": True}}}}},
        ),
    ],
)  # fmt: skip
def test_other_words_are_searched_as_the_text_is_but_may_be_missing(query, expected):
    assert words_query(find_typed({"query": query}), REWRITE) == {"bool": {"should": [expected]}}


def test_leaves_on_the_same_fields_count_once():
    phrase = {"match_phrase": {"title": {"query": "boots", "boost": 10}}}
    fields = {"multi_match": {"query": "boots", "fields": ["title^2", "body"]}}
    body = {"query": {"bool": {"should": [phrase, MATCH, MATCH, fields]}}}
    asked = words_query(find_typed(body), [Clause("hiking"), Clause("  ")])["bool"]["should"]
    assert [(next(iter(query)), next(iter(query.values())).get("fields")) for query in asked] == [
        ("match", None),
        ("multi_match", ["title^2", "body"]),
    ]
    found = with_alternatives(body, find_typed(body), [Clause("hiking")])["query"]["bool"]["should"]
    assert [choice["bool"]["should"][0] for choice in found] == [phrase, MATCH, MATCH, fields]
    assert found[0]["bool"]["should"][1]["match"]["title"]["boost"] == 0.0
    assert found[1]["bool"]["should"][1]["match"]["title"]["boost"] == 1.0


def test_joins_around_a_leaf_are_around_other_words_too():
    inner = {"nested": {"path": "parts.makers", "query": {"match": {"parts.makers.name": "boots"}}}}
    body = {"query": {"has_child": {"type": "answer", "query": {"nested": {"path": "parts", "query": inner}}}}}
    (asked,) = words_query(find_typed(body), [Clause("hiking")])["bool"]["should"]
    within = asked["has_child"]["query"]["nested"]["query"]["nested"]
    assert (within["path"], list(within["query"]["match"])) == ("parts.makers", ["parts.makers.name"])


def test_two_rules_of_one_query_get_alternatives_once():
    rules = [{"match": {"query": "boots"}}, {"match": {"query": "boots", "ordered": True}}]
    query = {"intervals": {"title": {"any_of": {"intervals": rules}}}}
    typed = find_typed({"query": query})
    assert len(typed.leaves) == 2
    assert with_alternatives({"query": query}, typed, REWRITE)["query"]["bool"]["should"][0] == query


@pytest.mark.parametrize("boost", ["high", None, [], -1, float("nan"), float("inf"), 10**400, True])
def test_an_invalid_boost_counts_as_one(boost):
    body = {"query": {"bool": {"boost": boost, "must": {"match": {"title": {"query": "boots", "boost": boost}}}}}}
    (asked,) = words_query(find_typed(body), [Clause("hiking")])["bool"]["should"]
    assert asked["match"]["title"]["boost"] == 1.0


@pytest.mark.parametrize("odd", [None, "boots", 1, True, [], ["boots"], [[MATCH]], {}, {"boots": "boots"}, {1: 2}])
@pytest.mark.parametrize(
    "kind", ["bool", "match", "multi_match", "intervals", "text_expansion", "knn", "nested", "later"]
)
def test_odd_types_hold_no_text(kind, odd):
    other = {"query": {"bool": {"should": [odd, {kind: odd}, {kind: {"query": odd}}, MATCH]}}}
    assert find_leaves(other)[-1].fields == ("title",)
    assert find_leaves({"retriever": {kind: odd}, "knn": odd}) == ()
    assert find_leaves({"query": odd, "knn": [odd], "retriever": [odd, {"standard": odd}, {"rrf": odd}]}) == ()
    highlighted = {"query": MATCH, "highlight": odd, "collapse": {"inner_hits": odd}}
    with_alternatives(highlighted, find_typed(highlighted), REWRITE)


def test_a_search_by_meaning_gets_no_other_words():
    body = {"query": {"semantic": {"field": "body", "query": "boots"}}}
    assert find_typed(body).text == "boots"
    assert words_query(find_typed(body), REWRITE) is None
    assert with_alternatives(body, find_typed(body), REWRITE) == body


def test_highlights_keep_the_words_of_the_client():
    own = {"match": {"title": "own"}}
    nested = {"nested": {"path": "parts", "query": {"match": {"parts.name": "boots"}},
                         "inner_hits": {"highlight": {"fields": {}}}}}  # fmt: skip
    query = {"bool": {"should": [MATCH, nested]}}
    body = {"query": query, "highlight": {"fields": {"title": {"highlight_query": own}, "body": {}}}}
    found = with_alternatives(body, find_typed(body), REWRITE)
    assert found["highlight"] == body["highlight"] | {"highlight_query": query}
    inner = found["query"]["bool"]["should"][1]["nested"]["inner_hits"]["highlight"]
    assert inner == {"fields": {}, "highlight_query": {"match": {"parts.name": "boots"}}}
    kept = {"query": MATCH, "highlight": {"highlight_query": own}}
    assert with_alternatives(kept, find_typed(kept), REWRITE)["highlight"] == {"highlight_query": own}


def test_a_body_without_the_text_stays_as_it_is():
    typed = find_typed({"query": MATCH})
    for other in ({}, {"query": {"match": {"title": "shoes"}}}, {"query": {"term": {"title": "boots"}}}):
        assert with_alternatives(other, typed, REWRITE) == other


# What a real node makes of it.


@pytest.fixture(scope="module")
def ask(elasticsearch_url):
    from elasticsearch_node import new_index_name

    index = new_index_name()

    def send(path, body, method="POST"):
        request = urllib.request.Request(
            f"{elasticsearch_url}/{index}{path}", json.dumps(body).encode(), method=method,
            headers={"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    text = {"type": "text", "fields": {"en": {"type": "text", "analyzer": "english"}}}
    send("", {"settings": {"number_of_shards": 1}, "mappings": {"properties": {
        "title": text, "body": {"type": "text"}, "year": {"type": "long"}, "kind": {"type": "keyword"},
        "flag": {"type": "boolean"}, "parts": {"type": "nested", "properties": {"name": {"type": "text"}}},
    }}}, "PUT")  # fmt: skip
    titles = ["red boots", "long boots for waterproof hiking in the mountains", "wool hat", "hiking poles", "red hat"]
    for number, title in enumerate(titles):
        document = {"title": title, "body": title, "year": 1998 + number, "kind": "shoe", "flag": number % 2 == 0,
                    "parts": [{"name": title}, {"name": "wool"}]}  # fmt: skip
        send(f"/_doc/{number}?refresh=true", document, "PUT")
    return lambda body: send("/_search", {"size": 100, **body})


def rescored(body, typed):
    words = words_query(typed, REWRITE)
    return body | ({"rescore": {"window_size": 100, "query": {"rescore_query": words}}} if words else {})


def shown(answer, *members):
    return {hit["_id"]: [hit.get(member) for member in members] for hit in answer["hits"]["hits"]}


EACH_FORM = [
    MATCH, {"match": {"title": {"query": "boots", "operator": "and", "analyzer": "standard", "boost": 2}}},
    {"match_phrase": {"title": "boots"}}, {"match_phrase_prefix": {"title": "boot"}},
    {"match_bool_prefix": {"title": "boot"}}, {"intervals": {"title": {"match": {"query": "boots"}}}},
    *({"multi_match": {"query": "boots", "fields": ["title^2", "title.en"], "type": kind, "tie_breaker": 0.3}}
      for kind in ("best_fields", "most_fields", "cross_fields", "phrase", "phrase_prefix", "bool_prefix")),
    {"multi_match": {"query": "boots"}}, {"multi_match": {"query": "boots", "fields": "title"}},
    {"multi_match": {"query": "boots", "fields": ["*"], "lenient": True}},
    {"multi_match": {"query": "1999 boots", "fields": ["title", "ye*"], "lenient": True}},
    {"combined_fields": {"query": "boots", "fields": ["title^2", "body"]}},
    {"query_string": {"query": "boots"}}, {"query_string": {"query": "boots", "default_field": "title"}},
    {"query_string": {"query": "boots", "fields": ["title", "body"], "type": "cross_fields", "tie_breaker": 0.1}},
    {"simple_query_string": {"query": "boots"}}, {"simple_query_string": {"query": "boots", "fields": ["title^4"]}},
    {"nested": {"path": "parts", "query": {"match": {"parts.name": "boots"}}, "inner_hits": {"name": "found"}}},
    {"constant_score": {"filter": MATCH}}, {"bool": {"must": MATCH, "filter": {"term": {"kind": "shoe"}}}},
]  # fmt: skip


@pytest.mark.elasticsearch
@pytest.mark.parametrize("query", EACH_FORM, ids=lambda query: next(iter(query)))
def test_a_node_accepts_other_words_with_every_form_and_ranks_by_them(ask, query):
    body = {"query": query}
    typed = find_typed(body)
    before, after = ask(body), ask(rescored(body, typed))
    assert list(shown(before)) == ["0", "1"]
    assert list(shown(after)) == ["1", "0"]
    assert before["hits"]["total"] == after["hits"]["total"]
    found = set(shown(ask(with_alternatives(body, typed, REWRITE))))
    assert found == ({"0", "1"} if "constant_score" in query else {"0", "1", "3"})


@pytest.mark.elasticsearch
def test_words_on_a_field_of_numbers_do_no_harm(ask):
    body = {"query": {"match": {"year": "1999"}}}
    assert list(shown(ask(rescored(body, find_typed(body))))) == ["1"]
    assert list(shown(ask(with_alternatives(body, find_typed(body), REWRITE)))) == ["1"]


def highlights(hit):
    inner = [highlights(h) for found in hit.get("inner_hits", {}).values() for h in found["hits"]["hits"]]
    return {hit["_id"]: hit.get("highlight")} | {name: marks for found in inner for name, marks in found.items()}


@pytest.mark.elasticsearch
@pytest.mark.parametrize(
    "body",
    [
        {"query": MATCH},
        {"retriever": {"standard": {"query": MATCH, "filter": {"term": {"kind": "shoe"}}}}},
        {"query": {"bool": {"must": MATCH}}, "collapse": {"field": "kind", "inner_hits": {
            "name": "all", "size": 9, "highlight": {"fields": {"title": {}}}}}},
    ],
)  # fmt: skip
def test_more_is_found_and_the_clients_words_are_highlighted(ask, body):
    asked = body | {"highlight": {"fields": {"title": {}}}}
    before, more = (
        {name: marks for hit in ask(one)["hits"]["hits"] for name, marks in highlights(hit).items()}
        for one in (asked, with_alternatives(asked, find_typed(asked), REWRITE))
    )
    assert before == {
        "0": {"title": ["red <em>boots</em>"]},
        "1": {"title": ["long <em>boots</em> for waterproof hiking in the mountains"]},
    }
    assert more == before | {"3": None}


@pytest.mark.elasticsearch
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(trees(lexical, COMPOUND))
def test_the_matching_set_stays_in_boost_and_grows_in_recall(ask, pair):
    body = {"query": pair[0], "highlight": {"fields": {"title": {}, "parts.name": {}}}}
    try:
        before = ask(body)
    except urllib.error.HTTPError as error:
        with error:
            assume(error.code not in (400, 500))  # 9.5.3 stumbles over some queries by itself, as nested in nested
        raise
    typed = Typed("boots", find_leaves(body))
    after, more = ask(rescored(body, typed)), ask(with_alternatives(body, typed, REWRITE))
    kept = ("matched_queries", "highlight")
    assert before["hits"]["total"] == after["hits"]["total"]
    assert shown(before, *kept, "inner_hits") == shown(after, *kept, "inner_hits")
    assert shown(before, *kept).items() <= shown(more, *kept).items()
