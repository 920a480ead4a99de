"""A real Elasticsearch gives the same answers through the proxy as directly, byte for byte except for `took`."""

import gzip
import http.client
import json
import re
from urllib.parse import urlsplit

import pytest
from elasticsearch.helpers import bulk, scan

from bespeak.proxy import Proxy, Upstream
from elasticsearch import Elasticsearch, NotFoundError
from proxy_server import serving

pytestmark = pytest.mark.elasticsearch

JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
ROWS = [{"text": f"word{n % 7} and word{n % 3}", "number": n} for n in range(200)]


@pytest.fixture(scope="module")
def proxy_url(elasticsearch_url):
    with serving(Proxy(Upstream([elasticsearch_url]))) as url:
        yield url


@pytest.fixture
def filled(elasticsearch_url, index_name):
    client = Elasticsearch(elasticsearch_url)
    mappings = {"properties": {"text": {"type": "text"}, "number": {"type": "integer"}}}
    client.indices.create(index=index_name, mappings=mappings, settings={"number_of_replicas": 0})
    rows = ({"_index": index_name, "_id": str(n), "_source": row} for n, row in enumerate(ROWS))
    bulk(client, rows, refresh=True)
    client.close()
    return index_name


def ask(url, method, target, headers=None, body=None):
    """Status, headers and body, not decoded."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.putrequest(method, target, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        connection.close()


def timeless(answer):
    """An answer without `took` and without headers that concern the connection."""
    status, headers, body = answer
    kept = [item for item in headers if item[0].lower() not in ("connection", "transfer-encoding", "content-length")]
    return status, kept, re.sub(rb'"took" ?: ?\d+|(?m:^took: \d+)', b"", body)


QUERY = {"query": {"match": {"text": "word1 word2"}}, "size": 20, "aggs": {"n": {"max": {"field": "number"}}}}
SEARCH = json.dumps(QUERY)
REQUESTS = [
    ("GET", "/", None, None),
    ("HEAD", "/", None, None),
    ("GET", "/{index}", None, None),
    ("HEAD", "/{index}", None, None),
    ("HEAD", "/{index}-none", None, None),
    ("GET", "/{index}/_doc/7", None, None),
    ("GET", "/{index}/_doc/none", None, None),
    ("GET", "/{index}/_doc/7?pretty&_source_includes=num*", None, None),
    ("GET", "/{index}/_mapping?human=true", None, None),
    ("GET", "/{index}/_search?q=text:word1&size=3&sort=number:desc", None, None),
    ("GET", "/{index}/_search?q=text:word1%20AND%20text:%22word2%22&filter_path=hits.hits._id,-took", None, None),
    ("POST", "/{index}/_search", JSON, SEARCH),
    ("GET", "/{index}/_search", JSON, SEARCH),
    ("POST", "/{index}/_search?pretty&filter_path=-took", JSON | {"Accept-Encoding": "gzip"}, SEARCH),
    ("POST", "/{index}/_search?filter_path=-took", JSON | {"Accept": "application/cbor"}, SEARCH),
    ("POST", "/{index}/_search?filter_path=-took", JSON | {"Accept": "application/smile"}, SEARCH),
    ("POST", "/{index}/_search", JSON | {"Accept": "application/yaml"}, SEARCH),
    ("POST", "/{index}/_search?format=yaml", JSON, SEARCH),
    ("POST", "/{index}/_search", JSON, '{"query": {"matches": {}}}'),
    ("POST", "/{index}/_search", JSON, '{"query": '),
    ("POST", "/{index}/_search", {"Content-Type": "text/plain"}, "{}"),
    ("POST", "/{index}/_count", JSON, '{"query": {"term": {"number": 7}}}'),
    ("POST", "/_msearch", NDJSON, '{{"index": "{index}"}}\n{{"query": {{"match_all": {{}}}}, "size": 1}}\n'),
    ("POST", "/_mget", JSON, '{{"docs": [{{"_index": "{index}", "_id": "1"}}]}}'),
    ("POST", "/{index}/_analyze", JSON, '{"text": "grüße aus köln", "analyzer": "standard"}'),
    ("GET", "/_cat/indices/{index}?v&h=index,docs.count", None, None),
    ("GET", "/_cat/indices/{index}?format=json&h=index", None, None),
    ("GET", "/%3C{index}%3E/_count", None, None),
    ("GET", "/{index}%2C{index}/_count", None, None),
    ("DELETE", "/{index}-none", None, None),
    ("PATCH", "/{index}", None, None),
    ("OPTIONS", "/{index}", None, None),
    ("GET", "/_no_such_api", None, None),
    ("GET", "/{index}/_search?nonsense=1", None, None),
    ("GET", "/{index}/_doc/7", {"Authorization": "Basic dTpw", "X-Opaque-Id": "o-1"}, None),
]


def filled_in(text, index):
    return text.replace("{index}", index).replace("{{", "{").replace("}}", "}") if text else text


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: f"{r[0]} {r[1]} {r[2] or ''}")
def test_answer_through_the_proxy_is_the_direct_answer(request_, elasticsearch_url, proxy_url, filled):
    method, target, headers, body = request_
    sent = filled_in(body, filled) if body and "{{" in body else body
    asked = (method, filled_in(target, filled), headers, sent.encode() if sent else None)
    direct, proxied = ask(elasticsearch_url, *asked), ask(proxy_url, *asked)
    assert timeless(proxied) == timeless(direct)


def test_a_compressed_bulk_request_passes(elasticsearch_url, proxy_url, index_name):
    lines = "".join(f'{{"index": {{"_id": "{n}"}}}}\n{json.dumps(row)}\n' for n, row in enumerate(ROWS))
    body = gzip.compress(lines.encode())
    headers = NDJSON | {"Content-Encoding": "gzip"}
    status, _, answer = ask(proxy_url, "POST", f"/{index_name}/_bulk?refresh=true", headers, body)
    assert (status, json.loads(answer)["errors"]) == (200, False)
    _, _, counted = ask(elasticsearch_url, "GET", f"/{index_name}/_count")
    assert json.loads(counted)["count"] == len(ROWS)


def test_official_client_notices_no_proxy(proxy_url, index_name):
    with Elasticsearch(proxy_url, http_compress=True) as client:
        rows = [{"_index": index_name, "_id": str(n), "_source": row} for n, row in enumerate(ROWS)]
        assert bulk(client, rows, chunk_size=30, refresh=True) == (len(ROWS), [])
        found = [hit["_id"] for hit in scan(client, index=index_name, size=30)]
        assert sorted(found, key=int) == [row["_id"] for row in rows]
        assert client.exists(index=index_name, id="7")
        with pytest.raises(NotFoundError) as caught:
            client.get(index=f"{index_name}-none", id="7")
        assert caught.value.error == "index_not_found_exception"
