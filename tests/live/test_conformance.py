"""Everything but personal searches passes the proxy unchanged, compared byte by byte.

Each request goes to the node itself and through a whole proxy. A request that changes something has `@twin` for the
name of its index, which is one on the one way and another of equal length on the other. Left out of the comparison are
`took` and what else is a time or drawn by chance; where two direct answers differ, so are all their figures.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import inspect
import itertools
import json
import os
import random
import re
import socket
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, get_args, get_origin
from urllib.parse import quote

import pytest
from elastic_transport import ApiError, ApiResponseMeta, BaseNode, HttpHeaders
from elastic_transport.client_utils import DEFAULT

from elasticsearch import Elasticsearch
from elasticsearch_node import new_index_name
from personal_proxy import call, personal_proxy
from proxy_server import connected

pytestmark = pytest.mark.elasticsearch
OWN_NODE = not os.environ.get("BESPEAK_TEST_ELASTICSEARCH")

TWIN = b"@twin"
JSON, NDJSON = b"application/json", b"application/x-ndjson"
ODD_IDS = ("ä/ö", "a b", "1+1", "x;y", "100%", "q?a#b", "c:d", "日本", "%2F", "..", "a&b=c", "@", "~!*'()", '"')

STATISTICS = re.compile(rb"/_cat/(thread_pool|nodes|allocation|recovery|fielddata)|_stats|/stats|/_info|/_health")
UNORDERED = re.compile(rb"(?:/_all|/\*)?/_mapping")
"""Elasticsearch names several indices in an order that changes with the cluster's state."""
BY_CHANCE = (
    (rb'"(took|[a-z_]*_(?:in_)?(?:milli|nano)s|creation_date|timestamp)"( ?: ?)(?:\d+|"[^"]*")', rb'"\1"\2 0'),
    (rb'"((?:index_)?uuid)"( ?: ?)"[^"]*"', rb'"\1"\2""'),
    (rb'"((?:_scroll_|pit_)?id)"( ?: ?)"[\w=-]{40,}"', rb'"\1"\2""'),
    (rb"(?<=\w)@[0-9a-f]{1,8}(?=[\]},])", b""),  # where Java keeps an object
    (rb"\n(took|creation_date): \"?\d+\"?", rb"\n\1: 0"),
    (rb"dtook(?:[\x00-\x17]|\x18.|\x19..)", rb"dtook"),  # CBOR
    (rb"\x83took(?:[\xc0-\xdf]|\x24[\x00-\x7f]*[\x80-\xff])", b"\x83took"),  # Smile
    (rb"\[-1:\d+\]|byte offset: #\d+", b""),  # a position in a buffer of the engine's
    (rb'("_id":"|/_doc/)[\w-]{20}(?=$|")', rb"\1"),  # the engine's own
)


@dataclass(frozen=True)
class Ask:
    """A request, target and body with `@twin` for the name of an index."""

    method: str
    target: str | bytes
    body: Any = None  # bytes as they are, a list as NDJSON, else JSON
    headers: Sequence[tuple[str, str]] = ()
    packed: bool = False
    chunked: bool = False

    @property
    def raw_body(self) -> bytes | None:
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        if isinstance(self.body, list):
            return "".join(json.dumps(line) + "\n" for line in self.body).encode()
        return json.dumps(self.body, ensure_ascii=False).encode()

    @property
    def raw_target(self) -> bytes:
        return self.target if isinstance(self.target, bytes) else self.target.encode("ascii")

    def on_wire(self, twin: bytes) -> bytes:
        body = self.raw_body
        lines = [b"%s %s HTTP/1.1" % (self.method.encode(), self.raw_target.replace(TWIN, twin)), b"Host: search"]
        lines += [f"{name}: {value}".encode() for name, value in self.headers]
        if body is not None:
            body = gzip.compress(body.replace(TWIN, twin), mtime=0) if self.packed else body.replace(TWIN, twin)
            if self.packed:
                lines.append(b"Content-Encoding: gzip")
            if not any(name.lower() == "content-type" for name, _ in self.headers):
                lines.append(b"Content-Type: " + (NDJSON if isinstance(self.body, list) else JSON))
            lines.append(b"Transfer-Encoding: chunked" if self.chunked else b"Content-Length: %d" % len(body))
            body = in_chunks(body) if self.chunked else body
        return b"\r\n".join([*lines, b"", body or b""])

    @property
    def reads(self) -> bool:
        """Whether it may be asked twice."""
        return self.method in ("GET", "HEAD", "OPTIONS") and b"scroll" not in self.raw_target

    @property
    def names_twin(self) -> bool:
        return TWIN in self.raw_target or TWIN in (self.raw_body or b"")

    def __str__(self) -> str:
        body = (self.raw_body or b"")[:200]
        return f"{self.method} {self.target!s} {list(self.headers)} {body!r}"


def in_chunks(body: bytes) -> bytes:
    parts = [body[n : n + 100] for n in range(0, len(body), 100)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    chunked: bool
    body: bytes

    @property
    def plain(self) -> bytes:
        return gzip.decompress(self.body) if ("content-encoding", "gzip") in self.headers and self.body else self.body

    def masked(self, twin: bytes) -> Answer:
        """The answer without random parts and the index's name, and without a length that depends on them."""

        def mask(text: bytes) -> bytes:
            for pattern, general in BY_CHANCE:
                text = re.sub(pattern, general, text, flags=re.DOTALL)
            return re.sub(rb"(@twin[\w-]*)/[\w-]{22}", rb"\1", text.replace(twin, TWIN)) if twin else text

        plain = self.plain
        body = mask(plain)
        headers = tuple(
            (name, mask(value.encode("latin-1")).decode("latin-1"))
            for name, value in self.headers
            if name != "content-length" or body == plain
        )
        return replace(self, headers=headers, body=body)

    def says_as(self, other: Answer) -> bool:
        """The same JSON, in any order."""
        try:
            return (self.status, json.loads(self.body)) == (other.status, json.loads(other.body))
        except ValueError:
            return False

    def loosened(self) -> Answer:
        """The answer without numbers and framing, to compare statistics."""
        figures = re.compile(rb"[\d.,]+(?:[eE]-?\d+)?(?:[kmgt]?b|ms|micros|nanos|[smhd%])?\b|[ \t]+|-(?=[\d])")
        headers = tuple(item for item in self.headers if item[0] != "content-length")
        return replace(self, headers=headers, chunked=False, body=figures.sub(b"", self.body))


UNANSWERED = Answer(0, "", (), False, b"")


@dataclass
class Way:
    """One connection, kept open as clients do: an answer with too many or too few bytes spoils the next."""

    url: str
    twin: bytes
    may_close: bool = False  # without a word, as the engine does after what it could not read
    _ending: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _socket: socket.socket | None = None

    def ask(self, request: Ask) -> Answer:
        kept = self._socket is not None
        try:
            return self._ask(request)
        except (ConnectionError, http.client.RemoteDisconnected):
            if not self.may_close:
                raise
            self.close()
            return self.ask(request) if kept else UNANSWERED
        except BaseException:
            self.close()
            raise

    def _ask(self, request: Ask) -> Answer:
        if self._socket is None:
            self._socket = self._ending.enter_context(connected(self.url))
        self._socket.sendall(request.on_wire(self.twin))
        response = http.client.HTTPResponse(self._socket, method=request.method)
        with contextlib.closing(response):
            response.begin()
            body = response.read()
            headers = tuple(
                (name, value)
                for name, value in response.headers.items()
                if name.lower() not in ("connection", "transfer-encoding")
            )
            if response.will_close:
                self.close()
            chunked = response.chunked and request.method != "HEAD"  # only announced (RFC 9112 6.1)
            return Answer(response.status, response.reason, headers, chunked, body)

    def close(self) -> None:
        self._ending.close()
        self._socket = None


@dataclass
class Both:
    """Sends the same requests both ways, and collects the differences."""

    direct: Way
    proxied: Way
    asked: int = 0
    loose: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def ask(self, request: Ask) -> Answer:
        """The engine's own answer."""
        self.asked += 1
        first, ours = self.direct.ask(request), self.proxied.ask(request)
        if first == UNANSWERED and ours.status == 502:
            return first
        own, got = self._masked(request, first, self.direct), self._masked(request, ours, self.proxied)
        for _ in range(3 if request.reads else 0):
            if own == got:
                break
            # The cluster's state may have changed in between, and with it the order in which it names its indices.
            own, got = (self._masked(request, way.ask(request), way) for way in (self.direct, self.proxied))
        if own == got or (UNORDERED.match(request.raw_target) and own.says_as(got)):
            return first
        if request.reads and (
            STATISTICS.search(request.raw_target) or own != self._masked(request, self.direct.ask(request), self.direct)
        ):
            self.loose.append(str(request))
            own, got = own.loosened(), got.loosened()
        if own != got:
            self.differences.append(f"{request}\n  direct: {shown(own, got)}\n  proxied: {shown(got, own)}")
        return first

    def _masked(self, request: Ask, answer: Answer, way: Way) -> Answer:
        return answer.masked(way.twin if request.names_twin else b"")

    def check(self, requests: Iterable[Ask]) -> None:
        for request in requests:
            self.ask(request)
        self.conclude()

    def conclude(self) -> None:
        differences, self.differences = self.differences, []
        assert not differences, f"{len(differences)} of {self.asked} differ:\n" + "\n".join(differences[:10])


def shown(answer: Answer, other: Answer) -> str:
    """The part of an answer where it begins to differ from another."""
    head = f"{answer.status} {answer.reason} {answer.headers} chunked={answer.chunked}"
    at = next((n for n, (a, b) in enumerate(zip(answer.body, other.body, strict=False)) if a != b), 0)
    return f"{head} …{answer.body[max(at - 60, 0) : at + 120]!r}"


@pytest.fixture(scope="module")
def index(elasticsearch_url):
    """Documents with all kinds of fields, some with ids that a URL must quote."""
    name = new_index_name()
    text = {"type": "text", "analyzer": "english", "fields": {"raw": {"type": "keyword"}}, "term_vector": "yes"}
    properties = {
        "title": text,
        "body": {"type": "text", "store": True},
        "stuff": {"type": "keyword"},
        "price": {"type": "integer"},
        "day": {"type": "date"},
        "place": {"type": "geo_point"},
        "sold": {"type": "boolean"},
        "parts": {"type": "nested", "properties": {"name": {"type": "keyword"}, "n": {"type": "integer"}}},
        "vec": {"type": "dense_vector", "dims": 4, "similarity": "cosine", "index": True},
        "complete": {"type": "completion"},
    }
    made = {"settings": {"number_of_shards": 1, "number_of_replicas": 0}, "mappings": {"properties": properties}}
    assert call(elasticsearch_url, f"/{name}", made, "PUT").status == 200
    lines = [line for n in range(80) for line in ({"index": {"_id": f"d{n}"}}, document(n))]
    lines += [line for i in ODD_IDS for line in ({"index": {"_id": i}}, {"title": f"odd {i}", "price": 1})]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    loaded = call(elasticsearch_url, f"/{name}/_bulk?refresh=true", body, Content_Type="application/x-ndjson")
    assert not loaded.json["errors"]
    settled = call(elasticsearch_url, f"/{name}/_forcemerge?max_num_segments=1&flush=true", method="POST")
    assert settled.status == 200
    return name


COLOURS = ("red", "blue", "green", "grün", "black")
THINGS = ("shoe", "running boots", "coat", "hat")


def document(n: int) -> dict[str, Any]:
    return {
        "title": f"{COLOURS[n % 5]} {THINGS[n % 4]}",
        "body": " ".join([THINGS[n % 4], "of", COLOURS[n % 3], "wool"] * (n % 4 + 1)),
        "stuff": ("silk", "wool", "felt")[n % 3],
        "price": n,
        "day": f"2024-0{n % 9 + 1}-{n % 28 + 1:02}",
        "place": {"lat": 48 + n / 100, "lon": 11 - n / 50},
        "sold": n % 2 == 0,
        "parts": [{"name": f"p{n % 4}", "n": n % 7}, {"name": f"p{n % 3}", "n": n % 5}],
        "vec": [1 + n % 5, 1 + n % 3, n % 7, 1.5],
        "complete": f"{COLOURS[n % 5]} {THINGS[n % 4]}",
    }


@pytest.fixture(scope="module")
def proxy(elasticsearch_url, tmp_path_factory):
    with personal_proxy(elasticsearch_url, tmp_path_factory.mktemp("proxy")) as (url, _):
        yield url


@pytest.fixture(scope="module")
def both(elasticsearch_url, proxy) -> Iterator[Both]:
    twins = new_index_name()
    ways = Way(elasticsearch_url, f"{twins}x".encode(), may_close=True), Way(proxy, f"{twins}z".encode())
    yield Both(*ways)
    for way in ways:
        way.close()
        for place in ("_index_template", "_component_template", "_template", "_ingest/pipeline", "_scripts"):
            call(elasticsearch_url, f"/{place}/{way.twin.decode()}", method="DELETE")


# Reading, by tables.

PLACES = """
/ /_cat /_cat/indices/{i} /_cat/indices/{i}?v /_cat/indices/{i}?v&s=index:desc&h=index,docs.count,health /_cat/aliases
/_cat/count/{i}?h=count /_cat/shards/{i}?h=index,shard,prirep,state,docs /_cat/health?ts=false /_cat/master?v
/_cat/nodeattrs?v /_cat/nodes?h=name,ip,node.role&v /_cat/plugins /_cat/templates?v /_cat/segments/{i}?v
/_cat/thread_pool?h=name,type /_cat/allocation?v /_cat/fielddata /_cat/recovery/{i}?h=index,shard,type,stage
/_cat/pending_tasks /_cat/repositories /_cat/nothing /_cat/indices?help
/_cluster/health /_cluster/health/{i} /_cluster/health?level=shards /_cluster/health?wait_for_status=yellow
/_cluster/state/version /_cluster/state/metadata/{i} /_cluster/settings?include_defaults=true&flat_settings=true
/_cluster/pending_tasks /_cluster/stats /_cluster/allocation/explain /_cluster/nothing /_info/ingest
/_nodes /_nodes/_local /_nodes/http,settings /_nodes/_all/plugins /_nodes/stats/indices /_nodes/nobody /_nodes/stats/os
/_remote/info /_tasks/a:1 /_tasks?actions=nothing /_resolve/index/{i}* /_health_report /_snapshot
/{i} /{i}?flat_settings /{i}?human /{i}/_mapping /{i}/_mapping/field/title,pri* /{i}/_mapping/field/* /_mapping/nothing
/{i}/_settings /{i}/_settings/index.number* /{i}/_settings?include_defaults /{i}/_alias /_alias /_aliases /{i}/_alias/no
/{i}/_stats/docs,store /{i}/_stats /{i}/_segments /{i}/_recovery /{i}/_shard_stores /{i}/_ilm/explain /{i}/_nothing
/{i}/_doc/d1 /{i}/_doc/d1?_source=title,price /{i}/_doc/d1?_source_excludes=body,vec&realtime=false /{i}/_doc/none
/{i}/_doc/d1?stored_fields=body&version=7 /{i}/_doc/d1?routing=x /{i}/_source/d1 /{i}/_source/d1?_source_includes=tit*
/{i}/_source/none /{i}/_doc /{i}/_doc/ /{i}/_termvectors/d1?fields=title,body /{i}/_termvectors/d1?positions=false
/{i}/_explain/d1?q=title:red /{i}/_explain/none?q=title:red /{i}/_count /{i}/_count?q=shoe /{i}/_count?q=price:[1+TO+9]
/{i}/_validate/query?q=title:(a&explain=true /{i}/_validate/query?q=shoe&rewrite=true /{i}/_field_caps?fields=*
/{i}/_search_shards /{i}/_mget?ids=a /{i}/_analyze?text=Shoes&analyzer=english /_analyze?text=a-b+c /_analyze
/{i}/_search /{i}/_search?q=shoe&size=3 /{i}/_search?q=title:red+AND+boots&default_operator=AND&df=body
/{i}/_search?q=shoe&q=coat /{i}/_search?q=gr%C3%BCn /{i}/_search?q=a;b&size=1 /{i}/_search?q=a%3Bb /{i}/_search?q=%zz
/{i}/_search?q=red&sort=price:desc&_source=false&docvalue_fields=day&size=2 /{i}/_search?size=-1 /{i}/_search?from=9999
/{i}/_search?size=20000 /{i}/_search?unknown=1 /{i}/_search?size=1&size=2 /{i}/_search? /{i}/_search?& /{i}/_search?q=
/{i}/_search?q=boots&explain&size=1 /{i}/_search?q=red&version&seq_no_primary_term&size=1 /{i}/_search?search_type=x
/{i}/_search?q=red&search_type=dfs_query_then_fetch&preference=_local /{i}/_search?rest_total_hits_as_int=true&size=0
/{i}/_search?q=red&typed_keys&track_total_hits=3&terminate_after=2&timeout=1m&batched_reduce_size=2&size=1
/{i},nothing/_search?ignore_unavailable=true&size=0 /{i},nothing/_search /nothing*/_search /nothing*/_search?size=0
/nothing*/_search?allow_no_indices=false /-x/_search /{i}*/_search?size=1&request_cache=true /_search?size=0
/{i}/_search/nothing /{i}/_search/template /_search/scroll /_search/scroll/abc /_search/scroll?scroll_id=abc /_pit
/_index_template /_component_template /_template /_index_template/no /_ingest/pipeline /_scripts/no /_script_context
/_script_language /_nodes/hot_threads?threads=0&type=nothing /_ingest/processor/grok /_dangling /_features /_license
/_xpack /_security/user /_sql?query=x /_ml/info /_async_search/x /_watcher/stats /_ilm/status /_data_stream
//{i}/_search?size=1 /{i}//_search?size=1 /{i}/_search/?size=1 /%2F /%2f{i}/_search /{i}%2F_search /{i}%2f_doc%2fd1
/_nothing /nothing /_ /%20 /%00 /%F0%9F%91%9F /{i}/%5Fdoc/d1 /{i}/_d%6Fc/d1 /%3Clogstash-%7Bnow%2Fd%7D%3E/_search
/{i}/_doc/d1;x=y /{i}/./_doc/d1 /{i}/../{i}/_doc/d1 /favicon.ico /_cat/indices/%2A /{i}/_doc/%E4 /{i}/_doc/%
/%3Ca%3E /{i}/_doc/d1#part /_all/_count /*/_count /_bespeakx /_bespeak%20 /{i}/_doc/d1??x /{i}/_doc/d1?_source=a?b
""".split()  # noqa: SIM905

FORMS = (
    "pretty",
    "pretty=false",
    "human",
    "error_trace=true",
    "format=yaml",
    "format=json",
    "format=cbor",
    "format=smile",
    "format=text",
    "format=nothing",
    "filter_path=**.title,*.*.name,error.type,count",
    "filter_path=-hits.hits._source,-*.settings",
    "filter_path=",
    "flat_settings=true",
    "pretty&format=yaml",
    "master_timeout=1s",
    "v",
    "help",
    "h=index",
    "ignore=404",
    "pretty&pretty=false",
    "a%20b=c",
    "=x",
    "x=%26%3D",
)
ACCEPTED = ((), (("Accept", "application/json"),), (("Accept", "application/yaml"),), (("Accept", "application/cbor"),),
            (("Accept", "application/smile"),), (("Accept", "text/plain"),), (("Accept", "text/html"),),
            (("Accept", "application/vnd.elasticsearch+json; compatible-with=8"),),
            (("Accept", "application/vnd.elasticsearch+json;compatible-with=9"),),
            (("Accept", "application/vnd.elasticsearch+cbor; compatible-with=6"),), (("Accept", "*/*"),),
            (("Accept-Encoding", "gzip"),), (("accept-encoding", "gzip, deflate, br"),),
            (("X-Opaque-Id", "mine"),), (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),),
            (("Accept", "application/json"), ("Accept", "application/yaml")),
            (("User-Agent", "ünïcode"),), (("X-Empty", ""),), (("Authorization", "Basic bm9ib2R5Om5vdGhpbmc="),),
            (("X-elastic-client-meta", "es=8.19.3,py=3.11.2,t=8.19.0,ur=2.2.3"),), (("Content-Type", "nothing/x"),),
            (("Origin", "http://elsewhere"),), (("Cookie", "a=b"), ("Cookie", "c=d")), (("Range", "bytes=0-9"),),
            (("If-None-Match", "x"),), (("X-HTTP-Method-Override", "DELETE"),), (("TE", "trailers"),))  # fmt: skip


def with_form(target: str, form: str) -> str:
    return target + ("&" if "?" in target else "?") + form


def test_reads_arrive_as_the_engine_sent_them(both, index):
    both.check(Ask("GET", place.replace("{i}", index)) for place in PLACES)


def test_head_requests_arrive_as_the_engine_sent_them(both, index):
    both.check(Ask("HEAD", place.replace("{i}", index)) for place in PLACES if not place.endswith("?"))


def test_other_methods_are_refused_alike(both, index):
    places = [place.replace("{i}", index) for place in PLACES[::5]]
    both.check(Ask(method, place) for place in places for method in ("OPTIONS", "PATCH", "TRACE"))
    wrong = ["/_cluster/health", "/_cat/indices", f"/{index}/_count", "/_nodes", "/_mget"]
    both.check(Ask(method, place) for place in wrong for method in ("PUT", "DELETE", "OPTIONS"))


def test_every_form_and_every_header_of_an_answer(both, index):
    chance = random.Random(9)
    kinds = list(itertools.product(FORMS, ACCEPTED))
    places = [place for place in PLACES if not STATISTICS.search(place.encode())]  # no figures to leave out of CBOR
    asked = []
    for form, headers in chance.sample(kinds, 300):
        target = with_form(chance.choice(places), form).replace("{i}", index)
        asked.append(Ask(chance.choice(("GET", "GET", "GET", "HEAD")), target, headers=headers))
    both.check(asked)


def test_a_user_changes_nothing_about_other_requests(both, index):
    """The names of users go no further than the proxy, and do nothing."""
    searches = re.compile(r"(/|%2F)_search(?![/\w])|/_async_search|/_search/(?:template)?(\?|$)")
    headers = [("X-Bespeak-User", "ada"), ("X-Bespeak-Session", "s"), ("X-Bespeak-Tenant", "")]
    places = [place.replace("{i}", index) for place in PLACES if not searches.search(place)]
    both.check(Ask("GET", place, headers=headers) for place in places)
    both.check(
        Ask("POST", f"/{index}/{api}", {"query": {"match": {"title": "coat"}}}, headers)
        for api in ("_count", "_explain/d1", "_validate/query", "_field_caps?fields=x", "_mget", "_rank_eval")
    )


def test_odd_ids_in_every_writing(both, index):
    asked = []
    for doc_id in ODD_IDS:
        full = quote(doc_id, safe="")
        writings = {full, full.lower(), full.replace("%20", "+"), quote(doc_id, safe="!*'();:@&=+$,~"), quote(doc_id)}
        for writing in sorted(writings):
            asked += [
                Ask(method, f"/{index}/{api}/{writing}") for api in ("_doc", "_source") for method in ("GET", "HEAD")
            ]
            asked.append(Ask("GET", f"/{index}/_count?q=_id:%22{writing}%22"))
    for path in ("/_doc/日本", "/_count?q=grün", "/_search?q=title:grün&size=2", "/_doc/\xe4"):
        asked.append(Ask("GET", f"/{index}{path}".encode()))  # as curl sends it
    both.check(asked)


def test_very_long_requests_get_the_same_answer(both, index):
    lengths = (3_000, 4_000, 4_095, 4_096, 4_200, 9_000, 70_000)
    both.check(Ask("GET", f"/{index}/_count?q={'x' * length}") for length in lengths)
    both.check(Ask("GET", f"/{'i' * length}/_count") for length in lengths)
    both.check(Ask("GET", "/", headers=[("X-Long", "x" * length)]) for length in (1_000, 8_000, 16_000))
    both.check(Ask("GET", "/", headers=[(f"X-{n}", "y" * 50) for n in range(many)]) for many in (10, 100))


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_head_that_the_engine_cannot_read_does_not_affect_later_requests(elasticsearch_url, proxy, method):
    """The engine answers it, reads nothing more on that connection, and yet keeps it open."""
    too_long = Ask(method, "/", b"{}" if method == "POST" else None, headers=[("X-Long", "x" * 20_000)])
    for _ in range(3):
        ways = [Way(url, b"") for url in (elasticsearch_url, proxy, proxy)]
        with contextlib.ExitStack() as ending:
            for way in ways:
                ending.callback(way.close)
            own, ours, others = ways
            answer = own.ask(too_long)
            assert answer.status == 400
            assert ours.ask(too_long) == answer
            assert others.ask(Ask("GET", "/")).status == 200
            assert ours.ask(Ask("GET", "/")).status == 200


# Searches and other bodies.


def leaves(chance: random.Random) -> Any:
    words = " ".join(
        chance.sample(("red", "grün", "shoes", "coat", "wool", "boots", "xyzzy", "of"), chance.randint(1, 3))
    )
    return chance.choice([
        {"match": {"title": words}},
        {"match": {"body": {"query": words, "operator": chance.choice(("and", "or", "nor"))}}},
        {"match": {"title": {"query": words, "fuzziness": "AUTO", "boost": 1.5, "_name": "named"}}},
        {"match_phrase": {"body": {"query": words, "slop": 2}}},
        {"match_phrase_prefix": {"title": words}},
        {"match_bool_prefix": {"title": words}},
        {"multi_match": {"query": words, "fields": ["title^2", "body"], "type": chance.choice(
            ("best_fields", "most_fields", "cross_fields", "phrase", "phrase_prefix", "bool_prefix", "nothing"))}},
        {"combined_fields": {"query": words, "fields": ["body"]}},
        {"query_string": {"query": chance.choice((words, "title:(red OR blue) -coat", "a AND", "price:[3 TO 9}"))}},
        {"simple_query_string": {"query": f"{words} +re*", "fields": ["title", "body"]}},
        {"term": {"stuff": chance.choice(("silk", "felt", 7))}},
        {"terms": {"stuff": ["silk", "wool"]}},
        {"range": {"price": {"gte": chance.randint(0, 50), "lt": 70}}},
        {"range": {"day": {"gte": "2024-03-01||/M", "format": chance.choice(("yyyy-MM-dd", "nothing{"))}}},
        {"prefix": {"title.raw": "re"}}, {"wildcard": {"title.raw": "*ed*"}}, {"regexp": {"stuff": "s.*k"}},
        {"fuzzy": {"stuff": "silt"}}, {"exists": {"field": "sold"}}, {"ids": {"values": ["d1", "ä/ö", "none"]}},
        {"match_all": {"boost": 2.5}}, {"match_none": {}}, {"nothing": {}}, {"match": "wrong"}, {},
        {"nested": {"path": "parts", "query": {"term": {"parts.name": "p1"}}, "inner_hits": {"size": 1}}},
        {"geo_distance": {"distance": "40km", "place": {"lat": 48.1, "lon": 10.9}}},
        {"more_like_this": {"fields": ["body"], "like": "wool coat", "min_term_freq": 1, "min_doc_freq": 1}},
        {"distance_feature": {"field": "day", "pivot": "7d", "origin": "2024-03-03"}},
        {"knn": {"field": "vec", "query_vector": [1, 2, 3, 4.5], "num_candidates": 20}},
    ])  # fmt: skip


def queries(chance: random.Random, depth: int = 2) -> Any:
    if not depth or chance.random() < 0.4:
        return leaves(chance)
    inner = [queries(chance, depth - 1) for _ in range(chance.randint(1, 3))]
    return chance.choice([
        {"bool": {chance.choice(("must", "should", "filter", "must_not")): inner, "should": leaves(chance)}},
        {"bool": {"should": inner, "minimum_should_match": chance.choice((1, "50%", "x"))}},
        {"dis_max": {"queries": inner, "tie_breaker": 0.3}},
        {"constant_score": {"filter": inner[0], "boost": 1.2}},
        {"boosting": {"positive": inner[0], "negative": inner[-1], "negative_boost": 0.2}},
        {"function_score": {"query": inner[0], "functions": [
            {"weight": 2, "filter": inner[-1]}, {"field_value_factor": {"field": "price", "missing": 1}},
            {"gauss": {"price": {"origin": 30, "scale": 5}}}], "score_mode": "sum"}},
    ])  # fmt: skip


EXTRAS = (
    {"size": 3}, {"from": 2, "size": 4}, {"size": 0}, {"from": -1}, {"sort": ["price"]}, {"track_total_hits": 5},
    {"sort": [{"day": "desc"}, "_score", {"title.raw": {"order": "asc", "missing": "_first"}}]}, {"sort": "nothing"},
    {"sort": [{"_geo_distance": {"place": {"lat": 48, "lon": 11}, "unit": "km"}}], "size": 2}, {"version": True},
    {"_source": False}, {"_source": ["ti*", "price"]}, {"_source": {"excludes": ["body"]}}, {"explain": True},
    {"fields": ["title", {"field": "day", "format": "yyyy"}], "_source": False}, {"stored_fields": ["body"]},
    {"docvalue_fields": ["price", "stuff"]}, {"seq_no_primary_term": True}, {"min_score": 0.7}, {"profile": False},
    {"highlight": {"fields": {"title": {}, "body": {"type": "plain", "fragment_size": 20}}}}, {"nothing": 1},
    {"aggs": {"s": {"terms": {"field": "stuff"}, "aggs": {"p": {"avg": {"field": "price"}}}}}, "size": 0},
    {"aggs": {"d": {"date_histogram": {"field": "day", "calendar_interval": "month"}},
              "n": {"missing": {"field": "x"}}}},
    {"aggs": {"c": {"composite": {"sources": [{"s": {"terms": {"field": "stuff"}}}], "size": 2}}, "q": {"percentiles": {
        "field": "price"}}, "t": {"top_hits": {"size": 1}}, "x": {"cardinality": {"field": "stuff"}}}, "size": 1},
    {"aggs": {"n": {"nested": {"path": "parts"}, "aggs": {"m": {"max": {"field": "parts.n"}}}}}},
    {"aggs": {"wrong": {}}}, {"post_filter": {"term": {"stuff": "silk"}}}, {"collapse": {"field": "stuff"}},
    {"suggest": {"a": {"text": "gren shoo", "term": {"field": "title"}}}}, {"indices_boost": [{"@i": 1.4}]},
    {"suggest": {"b": {"prefix": "re", "completion": {"field": "complete", "skip_duplicates": True}}}},
    {"rescore": {"window_size": 10, "query": {"rescore_query": {"match": {"body": "wool"}}}}}, {"timeout": "10s"},
    {"ext": {"other": {"a": 1}}}, {"runtime_mappings": {"r": {"type": "keyword"}}}, {"terminate_after": 2},
    {"knn": {"field": "vec", "query_vector": [1, 2, 3, 4], "k": 3, "num_candidates": 20}}, {"search_after": [3]},
    {"sort": ["price"], "search_after": [30], "size": 2}, {"slice": {"id": 0, "max": 2}}, {"stats": ["group"]},
    {"script_fields": {"x": {"script": "1"}}}, {"collapse": {"field": "stuff", "inner_hits": {"name": "i", "size": 1}}},
)  # fmt: skip


def bodies(chance: random.Random, index: str) -> dict[str, Any]:
    body = {"query": queries(chance)} if chance.random() < 0.9 else {}
    for extra in chance.sample(EXTRAS, chance.randint(0, 2)):
        body |= extra
    return json.loads(json.dumps(body).replace("@i", index))


def test_searches_of_all_forms(both, index):
    chance = random.Random(3)
    paths = (f"/{index}/_search", f"/{index}*/_search?typed_keys=true", f"/{index}/_search?pretty&size=2",
             f"/{index}/_search?format=yaml", f"/{index}/_search?filter_path=hits.hits._id,error&format=cbor",
             f"/{index}/_search?filter_path=hits&format=smile", f"/{index}/_search?rest_total_hits_as_int=true",
             )  # fmt: skip
    both.check(
        Ask(
            chance.choice(("POST", "POST", "GET")),
            chance.choice(paths[:1] * 3 + paths),
            bodies(chance, index),
            chance.choice([(), *ACCEPTED[-18:]]),
            packed=chance.random() < 0.2,
            chunked=chance.random() < 0.2,
        )
        for _ in range(250)
    )


def test_other_readings_with_a_body(both, index):
    chance = random.Random(4)
    asked = []
    for _ in range(60):
        query = {"query": queries(chance)}
        api = chance.choice(
            ("_count", "_explain/d1", "_validate/query?explain=true", "_explain/none", "_search_shards")
        )
        asked.append(Ask(chance.choice(("GET", "POST")), f"/{index}/{api}", query, packed=chance.random() < 0.3))
    for analyze in ({"text": "The Running Shoes"}, {"analyzer": "english", "text": ["a b", "Ärger"], "explain": True},
                    {"tokenizer": "keyword", "filter": ["lowercase"], "text": "A-B"}, {"field": "title", "text": "a"},
                    {"analyzer": "nothing", "text": "x"}, {"text": ""}, {}):  # fmt: skip
        asked += [Ask("POST", "/_analyze", analyze), Ask("GET", f"/{index}/_analyze?pretty", analyze)]
    docs = {
        "docs": [{"_id": "d1"}, {"_id": "none"}, {"_id": "ä/ö", "_source": ["title"]}, {"_index": "no", "_id": "1"}]
    }
    asked += [Ask("POST", f"/{index}/_mget", docs), Ask("GET", f"/{index}/_mget?_source=false", {"ids": ["d3", "d1"]}),
              Ask("POST", "/_mget", docs), Ask("POST", f"/{index}/_mget", {"docs": []}), Ask("POST", "/_mget", b"{"),
              Ask("POST", f"/{index}/_field_caps?fields=*&include_unmapped", {"index_filter": {"match_all": {}}}),
              Ask("POST", f"/{index}/_termvectors/d1", {"fields": ["title"], "term_statistics": True}),
              Ask("POST", f"/{index}/_termvectors", {"doc": {"title": "red shoes"}, "offsets": False}),
              Ask("POST", f"/{index}/_mtermvectors", {"ids": ["d1", "d2"], "parameters": {"fields": ["body"]}}),
              Ask("POST", "/_ingest/pipeline/_simulate", {"pipeline": {"processors": []}, "docs": [{"_source": {}}]}),
              Ask("POST", "/_index_template/_simulate_index/x", {}),
              Ask("POST", f"/{index}/_terms_enum", {"field": "stuff"}),
              Ask("POST", "/_render/template", {"source": "{}"}), Ask("POST", "/_search/template", {"source": "{}"}),
              ]  # fmt: skip
    both.check(asked)


def test_several_searches_in_one_request(both, index):
    chance = random.Random(5)
    asked = []
    for n in range(25):
        heads = ({}, {"index": index}, {"index": "no"}, {"preference": "_local"}, {"ignore_unavailable": True})
        lines = [line for _ in range(n % 6 + 1) for line in (chance.choice(heads), bodies(chance, index))]
        target = f"/{index}/_msearch" + chance.choice(("", "?max_concurrent_searches=1", "?pretty", "?typed_keys"))
        asked.append(Ask("POST", target, lines, packed=n % 3 == 0, chunked=n % 4 == 0))
    odd = (b"", b"\n", b"{}\n", b"{}\n{}", b"{}\n{}\n\n", b"{}\r\n{}\r\n", b"{\n}\n", b"[]\n{}\n")
    asked += [Ask("POST", f"/{index}/_msearch", body, [("Content-Type", "application/x-ndjson")]) for body in odd]
    asked += [Ask("GET", "/_msearch", [{"index": index}, {"size": 1}]), Ask("POST", "/_msearch/template", [{}, {}])]
    both.check(asked)


def test_unusual_bodies_get_the_same_answer(both, index):
    bodies = (b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"query":{"match_all":{}}}trailing',
              b'{"size":1,"size":2}', b'{"query":{"match":{"title":"\xed\xa0\x80"}}}', b'{"size":1e2}', b"{'size':1}",
              b'{"size":NaN}', b"{" * 2000, b'{"a":' * 1200 + b"1" + b"}" * 1200, b"/**/{}", b" \n{}\n ")  # fmt: skip
    kinds = ("application/json", "application/x-ndjson", "application/cbor", "application/yaml", "text/plain",
             "application/vnd.elasticsearch+json; compatible-with=8", "application/x-www-form-urlencoded", "",
             "application/json; charset=UTF-8", "application/json;charset=latin1", "application/smile")  # fmt: skip
    asked = [
        Ask("POST", f"/{index}/{api}", body, [("Content-Type", kinds[0])])
        for body in bodies
        for api in ("_search", "_count")
    ]
    asked += [Ask("POST", f"/{index}/{api}", b'{"size":1}', [("Content-Type", kind)]) for kind in kinds
              for api in ("_search", "_analyze", "_mget")]  # fmt: skip
    asked += [Ask("POST", f"/{index}/_search", body, [("Content-Encoding", coding), ("Content-Type", kinds[0])])
              for body in (b"{}", gzip.compress(b"{}", mtime=0), gzip.compress(b"{}" * 9, mtime=0)[:-9])
              for coding in ("gzip", "deflate", "identity", "nothing", "gzip, gzip")]  # fmt: skip
    both.check(asked)


# What changes something.


def changes() -> Iterator[Ask]:
    """The life of an index, each step upon the one before."""
    twin = "/@twin"
    shape = {"settings": {"number_of_shards": 1, "number_of_replicas": 0, "refresh_interval": "-1"},
             "mappings": {"properties": {"title": {"type": "text"}, "n": {"type": "long"}}}}  # fmt: skip
    for method in ("HEAD", "PUT", "PUT", "HEAD", "GET"):
        yield Ask(method, twin, shape if method == "PUT" else None)
    for body in (
        {"properties": {"extra": {"type": "keyword"}}},
        {"properties": {"n": {"type": "text"}}},
        {"no": 1},
        {},
    ):
        yield Ask("PUT", f"{twin}/_mapping", body)
    for body in (
        {"index": {"max_result_window": 500}},
        {"number_of_shards": 2},
        {"nothing": 1},
        {"index.blocks.write": False},
    ):
        yield Ask("PUT", f"{twin}/_settings", body)
    for n, doc_id in enumerate(ODD_IDS):
        yield Ask("PUT", f"{twin}/_doc/{quote(doc_id, safe='')}", {"title": doc_id, "n": n}, packed=n % 2 == 0)
    yield Ask("PUT", f"{twin}/_doc/1?refresh=true", {"title": "one", "n": 1})
    yield Ask("PUT", f"{twin}/_doc/1?refresh=false&timeout=1m", {"title": "one again", "n": 1}, chunked=True)
    yield Ask("PUT", f"{twin}/_create/1", {"title": "conflict"})
    yield Ask("PUT", f"{twin}/_doc/1?if_seq_no=0&if_primary_term=1", {"title": "conflict"})
    yield Ask("PUT", f"{twin}/_doc/2?version=9&version_type=external", {"title": "two"})
    yield Ask("PUT", f"{twin}/_doc/2?version=3&version_type=external", {"title": "two"})
    yield Ask("PUT", f"{twin}/_doc/3?routing=r&pretty", {"title": "three", "n": "no number"})
    yield Ask("PUT", f"{twin}/_doc/3?op_type=create", b"title: three\nn: 3\n", [("Content-Type", "application/yaml")])
    yield Ask("POST", f"{twin}/_doc/4?format=yaml", {"title": "four"})
    yield Ask("PUT", f"{twin}/_doc/{'x' * 513}", {})
    yield Ask("PUT", f"{twin}/_doc/5", b"")
    yield Ask("PUT", f"{twin}/_doc/5", b'{"a"')
    for body in ({"doc": {"n": 7}}, {"doc": {"n": 7}}, {"doc": {}, "doc_as_upsert": True}, {"script": "1"}, {}):
        yield Ask("POST", f"{twin}/_update/1?_source=true", body)
    yield Ask("POST", f"{twin}/_update/none", {"doc": {"n": 1}})
    yield Ask("POST", f"{twin}/_update/up", {"doc": {"n": 1}, "upsert": {"n": 5}})
    for doc_id in ("4", "4", "none", quote("ä/ö", safe="")):
        yield Ask("DELETE", f"{twin}/_doc/{doc_id}")
    yield from bulks()
    for api in ("_refresh", "_flush", "_forcemerge?max_num_segments=1", "_cache/clear"):
        yield Ask("POST", f"{twin}/{api}")
    for doc_id in ("1", "2", "3", "5", "up", quote("1+1", safe=""), "a%20b"):
        yield Ask("GET", f"{twin}/_doc/{doc_id}")
    yield Ask("GET", f"{twin}/_search?sort=_doc&size=50")
    yield Ask("GET", f"{twin}/_count")
    yield Ask("GET", f"{twin}/_stats/docs,indexing,get")


def bulks() -> Iterator[Ask]:
    many = [line for n in range(300) for line in ({"index": {"_id": f"b{n}"}}, {"title": f"number {n} ünï", "n": n})]
    mixed = [{"create": {"_id": "1"}}, {"n": 1}, {"update": {"_id": "b1"}}, {"doc": {"n": -1}},
             {"delete": {"_id": "b2"}}, {"delete": {"_id": "none"}}, {"index": {"_id": "b3"}}, {"n": "x"},
             {"update": {"_id": "no"}}, {"doc": {}},
             {"index": {"_index": "@twin", "_id": "b4", "routing": "r"}}, {"n": 4}]  # fmt: skip
    yield Ask("POST", "/@twin/_bulk?refresh=true", many)
    yield Ask("POST", "/@twin/_bulk?refresh=true", many, packed=True, chunked=True)
    yield Ask("PUT", "/@twin/_bulk?filter_path=items.*.status,errors", many, [("Accept-Encoding", "gzip")])
    yield Ask("POST", "/_bulk?pretty&refresh=true", mixed[-2:])
    yield Ask("POST", "/@twin/_bulk?_source=true&require_alias=false", mixed)
    yield Ask("POST", "/@twin/_bulk?require_alias=true", mixed)
    yield Ask("POST", "/@twin/_bulk", mixed, [("Content-Type", "application/json")])
    as_json = b"".join(json.dumps(line).encode() + b"\r\n" for line in mixed)
    yield Ask("POST", "/@twin/_bulk", as_json, [("Content-Type", "application/x-ndjson")])
    for body in (
        b"",
        b"\n",
        b"{}",
        b"{}\n",
        b'{"index":{}}\n{"n":1}',
        b'{"no":{}}\n{}\n',
        b'{"index":{"_id":"z"}}\n{\n',
    ):
        yield Ask("POST", "/@twin/_bulk", body, [("Content-Type", "application/x-ndjson")])
    yield Ask("POST", "/@twin/_bulk", mixed, [("Content-Type", "text/plain")])
    yield Ask("GET", "/@twin/_bulk")


def administration() -> Iterator[Ask]:
    twin = "/@twin"
    remove = {"remove": {"index": "@twin", "alias": "@twin-a"}}
    for action in ({"add": {"index": "@twin", "alias": "@twin-a", "filter": {"term": {"n": 1}}}},
                   {"add": {"index": "@twin", "alias": "@twin-b", "is_write_index": True}},
                   {"no": {}}, remove, remove):  # fmt: skip
        yield Ask("POST", "/_aliases", {"actions": [action]})
    yield Ask("PUT", f"{twin}/_alias/@twin-c", {"routing": "1"})
    yield Ask("GET", f"{twin}/_alias")
    yield Ask("GET", "/_alias/@twin-*")
    yield Ask("HEAD", "/_alias/@twin-c")
    yield Ask("GET", "/@twin-b/_count")
    yield Ask("GET", "/_cat/aliases/@twin*?h=alias,filter,is_write_index")
    yield Ask("DELETE", f"{twin}/_alias/@twin-c")
    matching = {"index_patterns": ["@twin-t*"]}
    dated = {"template": {"mappings": {"properties": {"t": {"type": "date"}}}}}
    for template in (matching | dated, {"index_patterns": []}, {}, matching | {"composed_of": ["nothing"]}):
        yield Ask("PUT", "/_index_template/@twin", template)
    for method in ("GET", "HEAD"):
        yield Ask(method, "/_index_template/@twin")
    yield Ask("POST", "/_index_template/_simulate/@twin")
    yield Ask("PUT", "/@twin-t1")
    yield Ask("GET", "/@twin-t1?pretty")
    yield Ask("POST", "/@twin-t1/_rollover", {})
    for method in ("PUT", "GET", "DELETE", "DELETE"):
        body = {"template": {"settings": {"number_of_shards": 1}}} if method == "PUT" else None
        yield Ask(method, "/_component_template/@twin", body)
    yield Ask("DELETE", "/_index_template/@twin")
    yield Ask("PUT", "/_template/@twin", {"index_patterns": ["@twin-t*"]})
    yield Ask("DELETE", "/_template/@twin")
    for method in ("PUT", "GET", "DELETE", "GET"):
        body = {"description": "d", "processors": []} if method == "PUT" else None
        yield Ask(method, "/_ingest/pipeline/@twin", body)
    yield Ask("PUT", "/_cluster/settings", {"persistent": {"nothing": 1}})
    yield Ask("PUT", "/_cluster/settings", {})
    yield Ask("POST", "/_cluster/reroute?dry_run=true&metric=none", {"commands": []})
    yield Ask("PUT", f"{twin}/_block/write")
    yield Ask("POST", f"{twin}/_clone/@twin-n", {"settings": {"number_of_replicas": 0}})
    yield Ask("PUT", f"{twin}/_doc/blocked", {})
    for api in ("_close", "_search", "_open", "_freeze", "_nothing"):
        yield Ask("POST", f"{twin}/{api}")
    for name in ("@TWIN", "_under", "@twin,b", "a%20b", "%23x", "-m", "x" * 300):
        yield Ask("PUT", f"/{name}")
    yield Ask("DELETE", "/@twin-t1,@twin-n")
    yield Ask("DELETE", "/@twin-*?expand_wildcards=none")
    for _ in range(2):
        yield Ask("DELETE", twin)


def test_writes_have_the_same_effect(both):
    both.check(changes())
    both.check(administration())


def test_scrolls_and_points_in_time(both, index):
    opened = [(way, ask_json(way, Ask("POST", f"/{index}/_search?scroll=1m", {"size": 30, "sort": ["price"]})))
              for way in (both.direct, both.proxied)]  # fmt: skip
    pages: list[list[Any]] = []
    for way, page in opened:
        found = []
        while page["hits"]["hits"]:
            found.append(page["hits"])
            page = ask_json(way, Ask("POST", "/_search/scroll", {"scroll": "1m", "scroll_id": page["_scroll_id"]}))
        freed = ask_json(way, Ask("DELETE", "/_search/scroll", {"scroll_id": page["_scroll_id"]}))
        pages.append([found, freed])
    assert pages[0] == pages[1]
    assert len(pages[0][0]) == 4
    walks = []
    for way in (both.direct, both.proxied):
        pit, after, walk = ask_json(way, Ask("POST", f"/{index}/_pit?keep_alive=1m"))["id"], None, []
        while True:
            body = {"pit": {"id": pit, "keep_alive": "1m"}, "size": 33, "sort": [{"price": "asc"}, "_shard_doc"]}
            page = ask_json(way, Ask("POST", "/_search", body | ({"search_after": after} if after else {})))
            if not page["hits"]["hits"]:
                break
            walk.append(page["hits"])
            pit, after = page["pit_id"], page["hits"]["hits"][-1]["sort"]
        walks.append([walk, ask_json(way, Ask("DELETE", "/_pit", {"id": pit}))])
    assert walks[0] == walks[1]
    assert len(walks[0][0]) == 3
    both.check([Ask("POST", "/_search/scroll", {"scroll_id": "nothing"}), Ask("DELETE", "/_search/scroll/abc"),
                Ask("DELETE", "/_pit", {"id": "nothing"}), Ask("POST", f"/{index}/_pit"),
                Ask("DELETE", "/_search/scroll"), Ask("POST", "/_search", {"pit": {"id": "nothing"}})])  # fmt: skip


def ask_json(way: Way, request: Ask) -> Any:
    answer = way.ask(request)
    assert answer.status == 200, answer
    return json.loads(answer.body)


# Everything that the official client knows.

LEFT_OUT = {
    "cluster.post_voting_config_exclusions",  # would take the only node out of the voting
    "cluster.delete_voting_config_exclusions",  # waits for that node to leave
    "cluster.reroute",  # answers with the state that it made
    "indices.add_block",  # with no more than it needs, nothing could be deleted afterwards
    "cluster.info",  # describes the client's connection
    "nodes.stats",
    "nodes.usage",
    "nodes.hot_threads",
    "tasks.list",  # describes the client's request
    "cat.tasks",
}


class Given(NamedTuple):
    meta: ApiResponseMeta
    body: bytes


def node_that_asks(both: Both) -> type[BaseNode]:
    class Node(BaseNode):
        """The client's transport: asks both ways, and gives the client the engine's answer."""

        def perform_request(
            self,
            method: str,
            target: str,
            body: bytes | None = None,
            headers: Any = None,
            request_timeout: Any = DEFAULT,
        ) -> Given:
            sent = [
                (name, value) for name, value in {**self.headers, **(headers or {})}.items() if name != "connection"
            ]
            answer = both.ask(Ask(method, target.replace("%40twin", "@twin"), body, sent))
            meta = ApiResponseMeta(answer.status, "1.1", HttpHeaders(answer.headers), 0.0, self.config)
            return Given(meta, answer.plain)

        def close(self) -> None:
            pass

    return Node


def apis(client: Any) -> Iterator[tuple[str, Any]]:
    """Name and method of all that a client can ask."""
    for name, member in inspect.getmembers(client):
        if name.startswith("_") or name in ("options", "close", "perform_request", "transport", "body", "raw"):
            continue
        if inspect.ismethod(member):
            yield name, member
        elif type(member).__name__.endswith("Client"):
            yield from (
                (f"{name}.{inner}", method)
                for inner, method in inspect.getmembers(member, inspect.ismethod)
                if not inner.startswith("_") and inner != "perform_request"
            )


def sample(name: str, annotation: Any) -> Any:
    """Any value that a parameter may have."""
    if get_origin(annotation) is not None and type(None) in get_args(annotation):
        annotation = get_args(annotation)[0]
    written = str(annotation)
    if literal := re.search(r"Literal\['([^']*)'", written):
        return literal[1]
    if "str" in written and not written.startswith(("typing.Mapping", "collections.abc.Mapping")):
        return "@twin" if "Sequence" not in written.split("[")[0] else ["@twin"]
    if "Mapping" in written.split("[")[0]:
        return {}
    if "Sequence" in written.split("[")[0]:
        return [{}]
    return 1 if "int" in written else {}


def ask_api(method: Any) -> None:
    """Asks with the least that it needs. Only its complaint says which body it requires."""
    parameters = inspect.signature(method).parameters.values()
    kinds = {one.name: one.annotation for one in parameters}
    given = {one.name: sample(one.name, one.annotation) for one in parameters if one.default is one.empty}
    for _ in range(4):
        try:
            method(**given)
            return
        except ApiError:
            return
        except ValueError as complaint:
            missing = re.findall(r"'(\w+)'", str(complaint))
            more = {name: sample(name, kinds[name]) for name in missing if name in kinds and name != "body"}
            given |= dict(list(more.items())[:1])


@pytest.mark.skipif(not OWN_NODE, reason="calls all there is, which is not done to a cluster that is somebody's own")
def test_every_request_of_the_official_client_passes(both):
    client = Elasticsearch("http://both:9200", node_class=node_that_asks(both), max_retries=0, retry_on_status=())
    before = both.asked
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client's own, of what is new or going
        for name, method in apis(client):
            if name not in LEFT_OUT:
                ask_api(method)
    assert both.asked - before > 500
    both.conclude()


def test_few_answers_were_compared_without_their_numbers(both):
    assert len(both.loose) <= both.asked / 50, "\n".join(both.loose)
