"""The lines of an `_msearch` and the answers to them."""

import pytest

from bespeak.errors import InputError
from bespeak.proxy.body.msearch import read_msearch, read_responses


def lines(*pairs):
    return "".join(f"{head}\n{body}\n" for head, body in pairs)


def test_several_searches_are_read_as_the_engine_reads_them():
    text = lines(("", "{}"), ("{}", '{"size": 3}\r'), ('{"index": ["a", "b"], "preference": "p"}', "{}"),
                 ('{"indices": "c", "allow_no_indices": false}', '{"ext": {"ubi": {"user_query": "q"}}}'))  # fmt: skip
    for end in ("", "\n"):
        found = read_msearch(text + end, "i")
        assert [one.search.index for one in found] == ["i", "i", "a,b", "c"]
        assert found[2].search.params == (("index", "a,b"), ("preference", "p"))
        assert ("allow_no_indices", "false") in found[3].search.params
        assert found[3].search.ubi == {"user_query": "q"}


@pytest.mark.parametrize(
    "text", ["", "{}", "{}\n", "{}\n{}", lines(("{}", "{}"), ("{}", "")), lines(("[]", "{}")), lines(("{}", "{")),
             "\n\n{}\n{}\n"]
)  # fmt: skip
def test_broken_lines_are_refused(text):
    with pytest.raises(InputError):
        read_msearch(text, "i")


def test_each_search_has_its_answer():
    answer = '{"took": 1, "responses": [{"took": 1}, {"error": {}}]}'
    assert [answer[span.start : span.end] for span in read_responses(answer, 2)] == ['{"took": 1}', '{"error": {}}']
    for other in (answer, '{"took": 1}', "[]", "{"):
        with pytest.raises(InputError):
            read_responses(other, 3)
