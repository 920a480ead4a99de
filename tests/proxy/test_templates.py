"""Search templates: rendered by the engine, then searched like any other body. The test node has none, so this engine
is an app that answers as Elasticsearch's reference says.
"""

import json

from personal_proxy import call, personal_proxy
from proxy_server import serving

AS_ADA = {"X_Bespeak_User": "ada", "X_Bespeak_Session": "s"}
ASKED = {"id": "mine", "params": {"q": "coat"}}
TEXTS = ["red coat", "silk coat", "wool coat"]


class Engine:
    """Three coats, found by any search."""

    def __init__(self):
        self.paths = []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.paths.append(scope["path"])
        status, answer = self.answer(scope["path"], json.loads(body or b"{}"))
        data = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    def answer(self, path, body):
        if path == "/_render/template":
            if body.get("id") != "mine":
                return 404, {"error": {"reason": "no such template"}, "status": 404}
            return 200, {"template_output": {"query": {"match": {"text": body["params"]["q"]}}, "size": 3}}
        if path == "/things":
            mappings = {"properties": {"text": {"type": "text"}}}
            return 200, {"things": {"mappings": mappings, "settings": {"index": {"uuid": "u"}}}}
        hits = [
            {"_index": "things", "_id": f"d{n}", "_score": 3.0 - n, "_seq_no": n, "_primary_term": 1,
             "_source": {"text": text}} for n, text in enumerate(TEXTS)
        ]  # fmt: skip
        return 200, {"took": 1, "hits": {"total": {"value": 3, "relation": "eq"}, "max_score": 3.0, "hits": hits}}


def test_a_template_is_rendered_and_searched(tmp_path):
    engine = Engine()
    with serving(engine) as engine_url, personal_proxy(engine_url, tmp_path / "p") as (url, _):
        reply = call(url, "/things/_search/template", ASKED, **AS_ADA)
    assert (reply.outcome["rewrite"], reply.outcome["rerank"]) == ("full", "full")
    assert reply.ids[0] == "d1"
    assert engine.paths[:2] == ["/_render/template", "/things/_search"]
    assert "/things/_search/template" not in engine.paths


def test_a_template_that_cannot_be_rendered_passes(tmp_path):
    engine = Engine()
    with serving(engine) as engine_url, personal_proxy(engine_url, tmp_path / "p") as (url, _):
        reply = call(url, "/things/_search/template", {"id": "another"}, **AS_ADA)
    assert (reply.outcome["rerank"], reply.outcome["reason"]) == ("off", "engine_refused")
    assert reply.ids == ["d0", "d1", "d2"]
    assert engine.paths[-1] == "/things/_search/template"


def test_several_templates_and_asynchronous_searches_pass_with_their_reason(tmp_path):
    engine = Engine()
    with serving(engine) as engine_url, personal_proxy(engine_url, tmp_path / "p") as (url, _):
        for path, reason in (("/_msearch/template", "msearch_template"), ("/things/_async_search", "async_search")):
            assert call(url, path, ASKED, **AS_ADA).outcome["reason"] == reason
            assert engine.paths[-1] == path


def test_a_template_without_a_user_passes_at_once(tmp_path):
    engine = Engine()
    with serving(engine) as engine_url, personal_proxy(engine_url, tmp_path / "p") as (url, _):
        reply = call(url, "/things/_search/template", ASKED)
    assert "X-Bespeak" not in reply.headers
    assert engine.paths == ["/things/_search/template"]


def test_searches_without_a_user_count_as_passed(tmp_path):
    with serving(Engine()) as engine_url, personal_proxy(engine_url, tmp_path / "p") as (url, _):
        call(url, "/things/_search", {"query": {"match": {"text": "coat"}}})
        call(url, "/_cat/indices")
        call(url, "/things/_search", {"query": {"match": {"text": "coat"}}}, **AS_ADA)
        told = call(url, "/_bespeak/metrics").body.decode()
    assert 'bespeak_requests_total{outcome="passed",reason=""} 2.0' in told
    assert 'bespeak_requests_total{outcome="personalised",reason=""} 1.0' in told
