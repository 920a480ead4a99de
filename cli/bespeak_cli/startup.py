"""The report of `bespeak serve` at its start, which shows the operator what is mistyped or not up yet."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder
    from bespeak.parts import Parts
    from bespeak.profiles.stores import EventStore
    from bespeak.records import Profile
    from bespeak.rewriting.rewriter import Rewriter

PROBE_S = 3.0
"""Seconds to wait for a node to say what it is."""
SAMPLE_QUERY = "How do I close it?"


@dataclass(frozen=True)
class Startup:
    """The parts that were opened, with texts that are ready to show."""

    upstreams: Sequence[str]
    ca_file: Path | None
    store: EventStore
    store_place: str
    parts: Parts
    users: str
    share: str
    has_token: bool

    def lines(self) -> list[tuple[str, str]]:
        """Names and descriptions. Each model runs once, so that the first search need not wait for it to be loaded."""
        with silent_log():
            nodes = asyncio.run(describe_nodes(self.upstreams, self.ca_file))
            profiles = describe_store(self.store, self.store_place)
        return [
            *(("upstream", node) for node in nodes),
            ("rewriter", describe_rewriter(self.parts.rewriter)),
            ("encoder", describe_encoder(self.parts.encoder)),
            ("sessions", describe_sessions(self.parts)),
            ("profiles", profiles),
            ("users", self.users),
            ("share", f"{self.share} of the users"),
            ("/_bespeak", "open to holders of the token" if self.has_token else "open to this machine only"),
        ]


@contextmanager
def silent_log() -> Iterator[None]:
    """Switches the log off: the report itself says what does not answer."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


async def describe_nodes(urls: Sequence[str], ca_file: Path | None) -> list[str]:
    answers = await asyncio.gather(*(describe_node(url, ca_file) for url in urls))
    return [f"{url}: {answer}" for url, answer in zip(urls, answers, strict=True)]


async def describe_node(url: str, ca_file: Path | None) -> str:
    """What answers at the URL, asked without credentials, which only clients have."""
    from bespeak.errors import EngineError
    from bespeak.proxy.http.upstream import Upstream

    upstream = Upstream([url], ca_file=ca_file, connections=1)
    try:
        async with asyncio.timeout(PROBE_S):
            answer = await upstream.send("GET", b"/", [(b"accept", b"application/json")], None)
            text = await answer.read(100_000)
            await answer.close()
    except EngineError as error:
        return f"does not answer yet ({error})"
    except TimeoutError:
        return f"does not answer yet (nothing within {PROBE_S:g} s)"
    finally:
        await upstream.close()
    if answer.status in (401, 403):
        return "requires credentials, which each client sends itself"
    if answer.status >= 500:
        return f"is not ready yet (status {answer.status})"
    return describe_answer(text)


def describe_answer(text: bytes) -> str:
    """
    >>> describe_answer(b'{"cluster_name": "shop", "version": {"number": "9.1.0"}}')
    'Elasticsearch 9.1.0, cluster shop'
    """
    try:
        about = json.loads(text)
        return f"Elasticsearch {about['version']['number']}, cluster {about['cluster_name']}"
    except (ValueError, LookupError, TypeError):
        return "the server does not look like Elasticsearch: check the URL"


def describe_store(store: EventStore, place: str) -> str:
    """Where profiles are kept; until they can be read, searches pass through unchanged."""
    from datetime import UTC, datetime

    from bespeak.errors import StoreError
    from bespeak.records import UserKey

    try:
        store.profile(UserKey("", "nobody"), "", datetime.now(UTC))
    except StoreError as error:
        return f"{place}; nothing is personalised yet: {error}"
    return place


def describe_rewriter(rewriter: Rewriter) -> str:
    rewrite = rewriter.rewrite(SAMPLE_QUERY, sample_profile())
    return rewriter.name if rewrite.status != "failed" else f"{rewriter.name}, which fails: {rewrite.reason}"


def describe_encoder(encoder: Encoder | None) -> str:
    from bespeak.errors import ModelError

    if encoder is None:
        return "none: hits are ordered by their words alone"
    try:
        encoder.encode([SAMPLE_QUERY], kind="query")
    except ModelError as error:
        return f"{encoder.name}, which fails: {error}"
    return encoder.name


def describe_sessions(parts: Parts) -> str:
    """How a session gets into the query's vector."""
    from bespeak.errors import ModelError

    if parts.context is None:
        return "by their last turn"
    name = parts.context.name
    try:
        parts.context.read(SAMPLE_QUERY, sample_profile())
    except ModelError as error:
        return f"{name}, which fails: {error}"
    return f"read by {name}"


def sample_profile() -> Profile:
    from bespeak.records import Profile, Turn

    return Profile(turns=(Turn("How do I open a file?", "", ""),))
