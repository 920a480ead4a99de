"""The proxy's metrics for Prometheus. No label holds a user, a query, an index or any other text from a client."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from bespeak.statuses import Reason

if TYPE_CHECKING:
    from bespeak.proxy.recording import RecorderCounts

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

LABEL = re.compile(r"[a-z0-9_]{0,40}")
MAX_REASONS = 100
"""The most labels of one kind. Further ones count as `other`, so that no fault can fill the memory."""


class Metrics:
    """Has a registry of its own, so two proxies in one process count apart."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._known: set[str] = set()
        self._requests = Counter(
            "bespeak_requests",
            "Requests by outcome: passed untouched, personalised, declined for a reason, failed at a stage.",
            ("outcome", "reason"),
            registry=registry,
        )
        self._rewrites = Counter(
            "bespeak_rewrites", "Rewrites by status and reason.", ("status", "reason"), registry=registry
        )
        self._reranks = Counter("bespeak_reranks", "Reranked answers by status.", ("status",), registry=registry)
        self._seconds = {
            name: Histogram(f"bespeak_{name}_seconds", description, buckets=SECONDS, registry=registry)
            for name, description in (
                ("rewrite", "Time for a rewrite."),
                ("rerank", "Time for reranking."),
                ("engine", "Time until the engine's answer to a personalised search was read."),
            )
        }
        self._breakers = Gauge(
            "bespeak_breaker_open", "1 while a stage rests after repeated faults.", ("stage",), registry=registry
        )
        ProcessCollector(registry=registry)

    def passed(self) -> None:
        """A request that was no search of a named user."""
        self._requests.labels("passed", "").inc()

    def personalised(self) -> None:
        self._requests.labels("personalised", "").inc()

    def declined(self, reason: str) -> None:
        """A search that names a user and was left as it was, for this reason."""
        self._requests.labels("declined", self._label(reason)).inc()

    def failed(self, stage: str) -> None:
        """A search that was sent on untouched because this stage failed."""
        self._requests.labels("failed", self._label(stage)).inc()

    def rewritten(self, status: str, reason: str = "", seconds: float | None = None) -> None:
        """`seconds` only if the rewriter was asked."""
        self._rewrites.labels(self._label(status), self._label(reason) if reason in set(Reason) else "").inc()
        if seconds is not None:
            self._seconds["rewrite"].observe(seconds)

    def reranked(self, status: str, seconds: float | None = None) -> None:
        self._reranks.labels(self._label(status)).inc()
        if seconds is not None:
            self._seconds["rerank"].observe(seconds)

    def engine_answered(self, seconds: float) -> None:
        self._seconds["engine"].observe(seconds)

    def watch_breaker(self, stage: str, is_open: Callable[[], bool]) -> None:
        """Asks `is_open` whenever the metrics are read."""
        self._breakers.labels(self._label(stage)).set_function(lambda: float(is_open()))

    def watch_recorder(self, counts: Callable[[], RecorderCounts]) -> None:
        self._registry.register(_RecorderCollector(counts))

    def watch_share(self, share: Callable[[], float]) -> None:
        gauge = Gauge("bespeak_share", "Share of users whose searches are personalised.", registry=self._registry)
        gauge.set_function(share)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format, `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _label(self, value: str) -> str:
        if value in self._known:
            return value
        if len(self._known) >= MAX_REASONS or not LABEL.fullmatch(value):
            return "other"
        self._known.add(value)
        return value


class _RecorderCollector(Collector):
    def __init__(self, counts: Callable[[], RecorderCounts]) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        counts = self._counts()
        yield GaugeMetricFamily("bespeak_events_queued", "Events waiting to be written.", counts.queued)
        yield CounterMetricFamily("bespeak_events_written", "Events handed to the store.", counts.written)
        yield CounterMetricFamily("bespeak_events_dropped", "Events dropped: the queue was full or the store failed.",
                                  counts.dropped)  # fmt: skip
