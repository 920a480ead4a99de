"""Our terms against the analyzer `english` of a real node."""

import json
import random
import re
import urllib.request

import pytest

from bespeak.text.analysis import tokens

pytestmark = pytest.mark.elasticsearch


@pytest.fixture(scope="session")
def analyze(elasticsearch_url):
    """Text -> (term, start, end) as the node says, in UTF-16 units."""

    def ask(text):
        body = json.dumps({"analyzer": "english", "text": text}).encode()
        request = urllib.request.Request(f"{elasticsearch_url}/_analyze", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            found = json.load(answer)["tokens"]
        return [(token["token"], token["start_offset"], token["end_offset"]) for token in found]

    return ask


def ours(text):
    units = [0]
    for character in text:
        units.append(units[-1] + 1 + (character > "\uffff"))
    return [(token.term, units[token.start], units[token.end]) for token in tokens(text)]


@pytest.mark.data
@pytest.mark.parametrize("name", ["ikat", "dialogue"])
def test_real_texts(analyze, shared_data, name):
    documents = map(json.loads, (shared_data / name / "corpus.jsonl").read_text("utf-8").splitlines())
    for document in documents:
        text = f"{document.get('title', '')}\n{document['text']}"
        assert ours(text) == analyze(text)


@pytest.mark.parametrize("planes", [(0x80, 0x3400), (0x9F00, 0xAC10), (0xF900, 0x11000), (0x1D000, 0x20000)])
def test_every_character_between_others(analyze, planes):
    codes = range(*planes)
    for start in range(codes.start, codes.stop, 400):
        part = map(chr, codes[start - codes.start :][:400])
        text = "".join(f" a{c}b {c} 1{c}2 {c}{c} ク{c}ク א{c}א #{c}\u20e3 👦{c}👧 ก{c}ก 🇩{c} -" for c in part)
        assert ours(text) == analyze(text)


def test_words_of_random_letters(analyze):
    """Endings that the stemmer looks for, behind random beginnings."""
    chosen = random.Random(4)
    endings = re.findall(
        r"\w+",
        "sses ies ss s eed ed ing at bl iz y ational tional enci anci izer bli alli entli eli ousli ization ation ator"
        " alism iveness fulness ousness aliti iviti biliti logi icate ative alize iciti ical ful ness al ance ence er"
        " ic able ible ant ement ment ent sion tion ou ism ate iti ous ive ize e ll",
    )
    for _ in range(20):
        words = [
            "".join(chosen.choices("aeioubcdkltxwyzsé", k=chosen.randint(0, 5))) + "".join(chosen.choices(endings, k=2))
            for _ in range(2000)
        ]
        text = " ".join(words)
        assert ours(text) == analyze(text)


@pytest.mark.parametrize("letter", ["a", "é", "1", "𝐀", "a_", "1.", "a'"])
def test_long_words(analyze, letter):
    text = f"{letter * 700} end"
    assert ours(text) == analyze(text)
