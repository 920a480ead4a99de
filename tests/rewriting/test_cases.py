"""Sessions of our own, and what is right as the rewrite of their last query: checked as such, then with the real model.

Each line of `tests/regressions/rewriting.jsonl` has `same` if the query must stay as typed, or else `all` and `none`,
regular expressions that must and must not be found in the rewrite, with an `example` of a right one.
"""

import json
import re
import unicodedata
from collections import defaultdict
from pathlib import Path

import pytest

from bespeak.reading import rewrite_query
from bespeak.records import Profile, Statement, Turn
from bespeak.rewriting.decoding import refuse_text
from bespeak.rewriting.grounding import attribute
from bespeak.rewriting.opening import choose_rewriter
from bespeak.session.reader import load_reader
from conftest import CHECKOUT

MUST_STAY, MUST_CHANGE = 0.85, 0.7
"""The least shares of right rewrites among the queries that must stay as typed, and among those that must change."""


def read_cases(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


FILE = CHECKOUT / "tests" / "regressions" / "rewriting.jsonl"
CASES = read_cases(FILE)
STAYING = [case for case in CASES if case.get("same")]
CHANGING = [case for case in CASES if not case.get("same")]


def profile_of(case):
    return Profile(
        statements=tuple(Statement(text, f"s{n}") for n, text in enumerate(case["statements"])),
        turns=tuple(Turn(turn["query"], turn["response"] or "", f"t{n}") for n, turn in enumerate(case["history"])),
    )


def plain(text):
    return unicodedata.normalize("NFC", text).replace("’", "'")


def bare(text):
    """The text without differences of case, white space and closing marks."""
    return "".join(plain(text).casefold().split()).rstrip(".!?…")


def is_right(rewrite, case):
    if case.get("same"):
        return bare(rewrite) == bare(case["query"])

    def has(pattern):
        return re.search(plain(pattern), plain(rewrite), re.IGNORECASE)

    return all(map(has, case.get("all", ()))) and not any(map(has, case.get("none", ())))


def check(rewrites):
    """The floors are reached; the message counts the right rewrites of each kind and shows the wrong ones."""
    right, kinds, wrong = defaultdict(list), defaultdict(list), []
    for case, rewrite in rewrites:
        is_so = is_right(rewrite, case)
        right[is_right(case["query"], case)].append(is_so)
        kinds[case["kind"]].append(is_so)
        if not is_so:
            wanted = "as typed" if case.get("same") else case.get("example", "")
            wrong.append(f"{case['_id']}: {case['query']} → {rewrite} (wanted: {wanted})")
    stay, change = (sum(right[same]) / len(right[same]) for same in (True, False))
    counts = [f"{kind}: {sum(found)} of {len(found)} right" for kind, found in kinds.items()]
    scores = f"{stay:.3f} stay as they must, {change:.3f} change as they must"
    reached = stay >= MUST_STAY and change >= MUST_CHANGE
    assert reached, "\n".join([scores, *counts, *wrong])


@pytest.fixture(scope="module")
def search(rewriter_cache):
    """Rewrites a case's query as a search would."""
    context = load_reader()
    rewriter = choose_rewriter("model", rewriter_cache, context=context)
    return lambda case: rewrite_query(case["query"], profile_of(case), rewriter, context).text


def by_id(case):
    return case["_id"]


def test_the_file_is_small_and_every_case_has_an_id_of_its_own():
    assert FILE.stat().st_size < 60_000
    ids = [case["_id"] for case in CASES]
    assert len(set(ids)) == len(ids)
    assert all(case["_id"].rpartition("-")[0] == case["kind"] for case in CASES)


@pytest.mark.parametrize("case", STAYING, ids=by_id)
def test_a_query_that_must_stay_is_right_as_typed(case):
    assert not {"all", "none", "example"} & set(case)
    assert is_right(case["query"], case)
    assert not is_right(f"{case['query']} trombone", case)


@pytest.mark.parametrize("case", CHANGING, ids=by_id)
def test_a_query_that_must_change_is_wrong_as_typed_and_its_example_is_right(case):
    for pattern in case["all"] + case["none"]:
        re.compile(pattern)
    assert case["all"]
    assert not is_right(case["query"], case)
    assert is_right(case["example"], case)


@pytest.mark.parametrize("case", CHANGING, ids=by_id)
def test_an_example_is_one_that_the_model_may_write(case):
    example, query, profile = case["example"], case["query"], profile_of(case)
    assert [term.text for term in attribute(example, query, profile) if term.source == "free"] == []
    assert not refuse_text(example, query, profile)


def test_case_spaces_closing_marks_and_forms_of_letters_make_no_difference():
    case = {"query": "what’s a café ?", "same": True}
    assert is_right("What's a  cafe\u0301", case)
    assert not is_right("what's a cafe", case)
    case = {"query": "and hers", "all": ["ada’s", "café"], "none": ["bob's"]}
    assert is_right("ADA'S CAFE\u0301", case)
    assert not is_right("Ada’s and Bob’s café", case)


def test_the_floors_tell_the_kinds_and_the_wrong_rewrites():
    check([(case, case.get("example", case["query"])) for case in CASES])
    with pytest.raises(AssertionError) as failed:
        check([(case, case["query"]) for case in CASES])
    assert "1.000 stay as they must, 0.000 change as they must" in str(failed.value)
    assert "follow_up: 0 of" in str(failed.value)
    assert "follow_up-01: how often do I have to drain it → how often" in str(failed.value)


@pytest.mark.model
def test_the_model_changes_the_queries_that_must_change_and_no_others(search):
    check([(case, search(case)) for case in CASES])


@pytest.mark.data
@pytest.mark.model
def test_the_model_reaches_the_same_floors_on_the_development_cases(shared_data, search):
    file = shared_data.parent / "field" / "rewriting.jsonl"
    if not file.is_file():
        pytest.skip("the development cases are not beside this checkout (../shared/field/rewriting.jsonl)")
    check([(case, search(case)) for case in read_cases(file)])
