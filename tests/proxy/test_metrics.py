from prometheus_client.parser import text_string_to_metric_families

from bespeak.proxy.metrics import MAX_REASONS, Metrics
from bespeak.proxy.recording import RecorderCounts
from bespeak.statuses import Reason


def samples(metrics):
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_requests_are_counted_by_outcome():
    metrics = Metrics()
    metrics.passed()
    metrics.personalised()
    metrics.personalised()
    metrics.declined("control")
    metrics.failed("profile_late")
    found = samples(metrics)
    assert found["bespeak_requests_total", "", "passed"] == 1
    assert found["bespeak_requests_total", "", "personalised"] == 2
    assert found["bespeak_requests_total", "control", "declined"] == 1
    assert found["bespeak_requests_total", "failed", "profile_late"] == 1


def test_statuses_and_seconds():
    metrics = Metrics()
    metrics.rewritten("full", seconds=0.3)
    metrics.rewritten("cached")
    metrics.rewritten("gated", "stands_alone")
    metrics.rewritten("unusable", Reason.STRAINED, 0.2)
    metrics.reranked("partial", 0.004)
    metrics.engine_answered(0.02)
    found = samples(metrics)
    assert {key[1:]: n for key, n in found.items() if key[0] == "bespeak_rewrites_total"} == {
        ("", "full"): 1, ("", "cached"): 1, ("gated", "stands_alone"): 1, ("strained", "unusable"): 1
    }  # fmt: skip
    assert found["bespeak_reranks_total", "partial"] == 1
    assert (found["bespeak_rewrite_seconds_count",], found["bespeak_rewrite_seconds_sum",]) == (2, 0.5)
    assert (found["bespeak_rerank_seconds_bucket", "0.005"], found["bespeak_rerank_seconds_bucket", "0.0025"]) == (1, 0)
    assert found["bespeak_engine_seconds_count",] == 1


def test_watched_values_are_read_each_time():
    metrics, state = Metrics(), {"open": False, "counts": RecorderCounts(1, 2, 3), "share": 0.1}
    metrics.watch_breaker("rewrite", lambda: state["open"])
    metrics.watch_recorder(lambda: state["counts"])
    metrics.watch_share(lambda: state["share"])
    found = samples(metrics)
    assert found["bespeak_breaker_open", "rewrite"] == 0
    assert found["bespeak_events_queued",] == 1
    assert found["bespeak_events_written_total",] == 2
    assert found["bespeak_events_dropped_total",] == 3
    assert found["bespeak_share",] == 0.1
    state.update(open=True, counts=RecorderCounts(0, 5, 3), share=0)
    found = samples(metrics)
    assert found["bespeak_breaker_open", "rewrite"] == 1
    assert found["bespeak_events_written_total",] == 5
    assert found["bespeak_share",] == 0


def test_no_text_from_a_client_becomes_a_label():
    metrics = Metrics()
    metrics.declined("vegan cake for ada@example.org")
    metrics.failed("Ünknown")
    metrics.rewritten("late", "not done in 3000 ms")
    metrics.rewritten("failed", "cannot rewrite vegan cake for ada@example.org")
    for n in range(3 * MAX_REASONS):
        metrics.declined(f"made_up_{n}")
    found = [key for key in samples(metrics) if key[0] == "bespeak_requests_total"]
    assert ("bespeak_requests_total", "declined", "other") in found
    assert ("bespeak_requests_total", "failed", "other") in found
    assert len(found) <= MAX_REASONS + 2
    assert {key[1:] for key in samples(metrics) if key[0] == "bespeak_rewrites_total"} == {("", "late"), ("", "failed")}
    assert b"ada" not in metrics.text()


def test_two_proxies_in_one_process_count_apart():
    one, other = Metrics(), Metrics()
    one.passed()
    assert ("bespeak_requests_total", "", "passed") not in samples(other)
