import pytest

from bespeak.records import Profile, Statement, Turn
from bespeak.session.gate import decline_rewriting

KNOWN = Profile(turns=(Turn("who founded the band", "Frank Zappa", "e1"),))


@pytest.mark.parametrize(
    "query",
    [
        "What kind of music did they play?",
        "and the second one?",
        "is it open at 3:30?",
        "Re: your last answer, what does it cost?",
        "what about COVID-19?",
        "covid-19",
        "24/7",
        "1969",
        "20-30",
        "1,000",
        "10:30",
        "in the 1990s?",
        "the 3rd",
        "iPhone",
        "how much is the iPhone 15 Pro?",
        "does it support HTTP/2?",
        'who said "I\'ll be back" in it?',
        "why?",
        "yes!",
        "AC/DC",
        "and/or",
        "is he in R.E.M. or U2",
        "I don't like it - what else is there",
        "cheap hotels under $100",
        "WHAT ABOUT THIS AND THAT",
        "salt and pepper or not?",
        "how do I use os.path.join with it?",
        "what does error 404 mean?",
        "show me the vegetarian ones",
        "naïve café",
        "what does 東京 mean?",
        "note: I am vegetarian. what can I eat?",
        "C++ or C#?",
        "what's the difference between a*b and b*a",
        "tell me more...",
        "5 star hotels",
        "GitHub",
        "x-ray",
        "a 7-day trip",
        "covid19",
        "100 km",
        "McDonald's",
    ],
)
def test_natural_questions_pass_the_gate(query):
    assert decline_rewriting(query, KNOWN) is None


@pytest.mark.parametrize(
    "query",
    [
        "WH-1000XM5",
        "B08N5WRWNW",
        "550e8400-e29b-41d4-a716-446655440000",
        "4006381333931",
        "978-3-16-148410-0",
        "/usr/local/bin/python3",
        "~/.ssh/config",
        "C:\\Windows\\System32",
        "src/main.py",
        "report.pdf",
        "ada@example.org",
        "https://example.org/a?b=c",
        "www.example.org",
        "example.com/shop",
        "0x80070005",
        "error code 0x80070005",
        "error 404",
        "ORA-12154",
        "CVE-2021-44228",
        "RFC 9110",
        "order #12345",
        "#12345",
        "v1.2.3",
        "os.path.join",
        "std::vector",
        "NullPointerException",
        "user_id",
        "MAX_VALUE",
        "da39a3ee5e6b",
        "+49 30 123456",
        "doi:10.1000/182",
    ],
)
def test_an_identifier_is_left_alone(query):
    assert decline_rewriting(query, KNOWN) == "identifier"


@pytest.mark.parametrize(
    "query",
    [
        "title:python",
        'author:"Ada Lovelace"',
        "price:>=10",
        "year:[2019 TO *]",
        "cats AND dogs",
        "cats OR dogs",
        "cats NOT dogs",
        "NOT dogs",
        "+cats -dogs",
        "cats -dogs",
        "pyth*",
        "te?t",
        "roam~",
        '"jakarta apache"~10',
        "cats^4 dogs",
        "name:/joh?n(ath[oa]n)/",
        '{"match_all": {}}',
    ],
)
def test_an_engines_syntax_is_left_alone(query):
    assert decline_rewriting(query, KNOWN) == "operators"


@pytest.mark.parametrize("query", ["?", "...", "*:*", "🎉 !", '" "'])
def test_a_query_without_a_letter_or_digit_is_left_alone(query):
    assert decline_rewriting(query, KNOWN) == "no_text"


@pytest.mark.parametrize("query", ['"to be or not to be"', "'exact words'", "“curly”", "«guillemets»", '  "spaces"  '])
def test_a_quoted_query_is_left_alone(query):
    assert decline_rewriting(query, KNOWN) == "quoted"


@pytest.mark.parametrize("query", ["東京の天気はどうですか", "где он родился?", "ما هو", "ποιος είναι"])
def test_a_script_that_the_model_does_not_know_is_left_alone(query):
    assert decline_rewriting(query, KNOWN) == "other_language"


@pytest.mark.parametrize("query", ["why " * 61, "a" * 501])
def test_a_long_query_is_left_alone(query):
    assert decline_rewriting(query, KNOWN) == "too_long"


def test_a_refusal_is_the_first_reason():
    assert decline_rewriting('"quoted"', Profile(turns=KNOWN.turns, consent=False)) == "refused"


def test_without_turns_and_statements_there_is_nothing_to_rewrite_from():
    assert decline_rewriting("and then?", Profile()) == "no_history"
    assert decline_rewriting("and then?", Profile(statements=(Statement("I am vegetarian.", "e1"),))) is None
