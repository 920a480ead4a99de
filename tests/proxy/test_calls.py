"""Which requests are searches, and how they are read."""

import json

import pytest

from bespeak.errors import InputError
from bespeak.proxy.calls import Call, query_without_source, read_call
from bespeak.proxy.searches import Searches

ANSWER = '{"took": 1, "hits": {"total": {"value": 9}, "max_score": 3.0, "hits": []}}'


def called(text, path="/i/_msearch", query=b"", headers=()):
    body = text.encode()
    return read_call({"path": path, "query_string": query, "headers": list(headers)}, body)


@pytest.mark.parametrize(
    "headers",
    [[(b"Content-Encoding", b"br")], [(b"Content-Type", b"application/yaml")], [(b"Accept", b"application/cbor")],
     [(b"content-type", b"application/x-www-form-urlencoded")], [(b"content-encoding", b"gzip")]],
)  # fmt: skip
def test_other_formats_are_not_read(headers):
    with pytest.raises(InputError):
        called("{}", "/i/_search", headers=headers)


def test_the_body_in_a_url_is_dropped_if_there_is_another():
    query = b"a=1&source=%7B%7D&source_content_type=application/json&sources=2"
    assert query_without_source(query) == b"a=1&sources=2"
    assert query_without_source(b"a=%2F") == b"a=%2F"
    assert query_without_source(b"source=1;b=2") == b"b=2"


def test_a_filtered_answer_is_json():
    asked = called("{}", "/i/_search", b"filter_path=took&filter_path=hits.total")
    assert json.loads(asked.filtered(ANSWER)) == {"hits": {"total": {"value": 9}}}
    with pytest.raises(ValueError, match="JSON compliant"):
        called("{}", "/i/_search", b"filter_path=n").filtered('{"n": 1e400}')


@pytest.mark.parametrize(
    ("method", "path", "concerned"),
    [
        ("GET", "/_search", True), ("POST", "/a,b*/_search", True), ("POST", "/i/_msearch", True),
        ("POST", "/i/_search/template", True), ("POST", "/i/_async_search", True), ("GET", "/i/_search/", True),
        ("HEAD", "/_search", False), ("OPTIONS", "/i/_search", False), ("PUT", "/i/_search", False),
        ("POST", "/_search/scroll", False), ("GET", "/_async_search/abc", False), ("POST", "/i/_doc/_search", False),
        ("DELETE", "/_search", False), ("GET", "/_search/template/x", False), ("POST", "/i/_searchx", False),
        ("GET", "/i/_search\n", False), ("GET", "/<i-{now/d}>,<j-{now/M}>/_search", True), ("GET", "/</_search", False),
    ],
)  # fmt: skip
def test_which_requests_are_searches(method, path, concerned):
    assert Searches.concerns(None, method, path, []) is concerned


def test_a_call_holds_the_request():
    found = called('{"size": 1}', "/a,<b-{now/d}>/_search", b"pretty&x=%20;y=1")
    assert isinstance(found, Call)
    assert found.index == "a,<b-{now/d}>"
    assert found.params == (("pretty", ""), ("x", " "), ("y", "1"))
    assert found.text == '{"size": 1}'
