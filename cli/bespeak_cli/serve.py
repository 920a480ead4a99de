"""`bespeak serve`: the proxy in front of Elasticsearch."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from bespeak_cli.mixing import mixing_options

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder
    from bespeak.parts import Parts
    from bespeak.profiles.events import EventStore
    from bespeak.proxy import Proxy
    from bespeak.rewriting.rewriter import Rewriter

STORE_S = 2.0
PROBE_S = 3.0
"""How long a node may take to say at the start what it is."""
GRACE_S = 25
"""How long what is in flight may take after a signal: Kubernetes kills after 30 s."""


@click.command()
@click.option("--upstream", required=True, multiple=True, metavar="URL", help="A node of the cluster; may be repeated.")
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The certificate (PEM) that signed the nodes' own.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; elsewhere a token is needed.")
@click.option("--port", default=9280, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@click.option("--token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Holds the token for the routes under /_bespeak.")  # fmt: skip
@click.option("--user-key", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Users are signed with this key: a public one (PEM), or a secret.")  # fmt: skip
@click.option("--share", default="100%", show_default=True, help="Of the users, how many are personalised.")
@click.option("--compare", metavar="A:B", help="Draft pages from two settings: engine, current or a TOML file each; "
              "A|B splits the users.")  # fmt: skip
@click.option("--profiles", type=click.Choice(["sqlite", "elasticsearch"]), default="sqlite", show_default=True,
              help="Where profiles are kept: on this machine, or in the cluster for several proxies.")  # fmt: skip
@click.option("--api-key", metavar="KEY", help="For profiles in the cluster: an encoded API key.")
@click.option("--basic", metavar="USER:PASSWORD", help="For profiles in the cluster: a user with a password.")
@click.option("--typed", default="", metavar="PATH",
              help="Where the user's text stands in a query of several, as query.bool.must.0.match.title.")  # fmt: skip
@click.option("--rewriter", type=click.Choice(["model", "last-turn", "none"]), default="model", show_default=True)
@click.option("--encoder", help="A model's name or folder; the shipped one if not given.")
@mixing_options
@click.option("--window", type=click.IntRange(1, 1000), help="Hits that are reranked.")
@click.option("--rewrite-ms", type=click.FloatRange(min=1), help="Time that a rewrite may take, in milliseconds.")
@click.option("--rerank-ms", type=click.FloatRange(min=1), help="Time that reranking may take, in milliseconds.")
@click.option("--model-runs", type=click.IntRange(1), help="Models that run at once; half of the cores if not given.")
@click.option("--connections", default=100, show_default=True, type=click.IntRange(1),
              help="Requests to Elasticsearch at once; the others wait.")  # fmt: skip
@click.option("--timeout-s", default=60.0, show_default=True, type=click.FloatRange(min=0.1),
              help="Seconds that Elasticsearch may be silent.")  # fmt: skip
@click.pass_context
def serve(ctx: click.Context, /, **options: Any) -> None:
    """Stand between any client and Elasticsearch, and personalise the searches that name a user.

    All else passes untouched. Stop it with Ctrl-C or SIGTERM: what is in flight is finished. Twice breaks it off.
    """
    from bespeak.proxy.assembly import assemble
    from bespeak.proxy.http.upstream import Upstream
    from bespeak.proxy.identity import JwtKey, Share
    from bespeak.proxy.routes import check_binding, read_token
    from bespeak_cli.compare import read_comparison

    token = read_token(options["token_file"]) if options["token_file"] else None
    check_binding(options["host"], token)
    share = Share.parse(options["share"])
    jwt_key = JwtKey.read(options["user_key"]) if options["user_key"] else None
    upstream = Upstream(
        options["upstream"],
        ca_file=options["ca_file"],
        timeout_s=options["timeout_s"],
        connections=options["connections"],
    )
    log_lines()
    with bind(options["host"], options["port"]) as listener:
        refuse_itself(options["upstream"], options["host"], listener.getsockname()[1])
        store = open_store(ctx, options)
        ctx.call_on_close(store.close)
        parts = open_parts(ctx, options, store)
        proxy = assemble(
            upstream, store, parts, ctx.obj.cache / "vectors.db", token=token, jwt_key=jwt_key, share=share,
            model_runs=options["model_runs"], typed_path=options["typed"],
            comparison=read_comparison(options["compare"], parts.settings) if options["compare"] else None,
        )  # fmt: skip
        users = f"as signed ({jwt_key.algorithm})" if jwt_key else "as each request says; --user-key wants them signed"
        tell(ctx, options, listener.getsockname()[1], store, parts, users)
        listen(proxy, listener)


def open_store(ctx: click.Context, options: dict[str, Any]) -> EventStore:
    """A proxy waits little for a store: a search that comes late is worse than one that is not personal."""
    from bespeak.errors import StoreError, UsageError

    if options["profiles"] == "elasticsearch":
        from bespeak.profiles.stores.elastic import ElasticsearchStore
        from bespeak_cli.engine import credentials

        store = ElasticsearchStore(
            options["upstream"][0],
            api_key=options["api_key"],
            basic=credentials(options["basic"]),
            ca_file=options["ca_file"],
            timeout_s=STORE_S,
        )
        with contextlib.suppress(StoreError):  # a cluster that is not there yet: the first event makes them
            store.prepare()
        return store
    from bespeak.profiles.stores.sqlite import SqliteStore

    for name in ("api_key", "basic"):
        if options[name]:
            raise UsageError(f"--{name.replace('_', '-')} is for profiles in the cluster: add --profiles elasticsearch")
    return SqliteStore(ctx.obj.data / "bespeak.db", timeout_s=STORE_S)


def open_parts(ctx: click.Context, options: dict[str, Any], store: EventStore) -> Parts:
    """What is missing of the models by itself costs what it would do; an encoder that was asked for has to be there."""
    from bespeak.models.encoder import load_encoder
    from bespeak_cli.parts import build_parts, open_encoder
    from bespeak_cli.search import read_settings

    settings, named = read_settings(options), options["encoder"]
    encoder = load_encoder(named, ctx.obj.cache, 1) if named else open_encoder(None, ctx.obj.cache, 1)
    rewriter = open_rewriter(ctx, options, store, encoder)
    return build_parts(settings, rewriter, encoder, ctx.obj.cache, ctx.obj.learnt, threads=1)


def open_rewriter(ctx: click.Context, options: dict[str, Any], store: EventStore, encoder: Encoder | None) -> Rewriter:
    """Nothing is built here: a proxy that starts again at night has no minute for it, and mostly no memory."""
    from bespeak.errors import ModelError
    from bespeak.rewriting.opening import choose_rewriter
    from bespeak.rewriting.rewriter import CachedRewriter, LastTurn

    try:
        return CachedRewriter(choose_rewriter(options["rewriter"], ctx.obj.cache, encoder=encoder), store)
    except ModelError as error:
        click.echo(f"Without the language model, with the words of the last turn instead: {error}", err=True)
        return LastTurn()


# What is said at the start.


def tell(ctx: click.Context, options: dict[str, Any], port: int, store: EventStore, parts: Parts, users: str) -> None:
    """What listens where and with what; the operator sees at once what was mistyped or is not up yet."""
    host = f"[{options['host']}]" if ":" in options["host"] else options["host"]
    logging.disable()  # what does not answer yet is told once
    try:
        nodes = asyncio.run(describe_nodes(options["upstream"], options["ca_file"]))
        profiles = describe_store(ctx, options, store)
    finally:
        logging.disable(logging.NOTSET)
    lines = [
        *nodes,
        ("rewriter", describe_rewriter(parts.rewriter)),
        ("encoder", describe_encoder(parts.encoder)),
        ("sessions", describe_context(parts)),
        ("profiles", profiles),
        ("users", users),
        ("share", f"{options['share']} of the users"),
        ("/_bespeak", "for who has the token" if options["token_file"] else "for this machine alone"),
    ]
    click.echo(f"Bespeak is at http://{host}:{port}", err=True)
    for name, told in lines:
        click.echo(f"  {name:<10} {told}", err=True)


async def describe_nodes(urls: Sequence[str], ca_file: Path | None) -> list[tuple[str, str]]:
    told = await asyncio.gather(*(describe_node(url, ca_file) for url in urls))
    return [("upstream", f"{url}: {what}") for url, what in zip(urls, told, strict=True)]


async def describe_node(url: str, ca_file: Path | None) -> str:
    """What answers there. It is asked without credentials: those are the clients'."""
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
        return "answers, and wants credentials: each client sends its own"
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
        return "what answers there does not look like Elasticsearch: check the URL"


def describe_rewriter(rewriter: Rewriter) -> str:
    """Tried once: the first search then waits for no model to be read, and one that fails is seen at the start."""
    from bespeak.records import Profile, Turn

    made = rewriter.rewrite("How do I close it?", Profile(turns=(Turn("How do I open a file?", "", ""),)))
    return rewriter.name if made.status != "failed" else f"{rewriter.name}, which fails: {made.reason}"


def describe_encoder(encoder: Encoder | None) -> str:
    """Tried once, as the rewriter is."""
    from bespeak.errors import ModelError

    if encoder is None:
        return "none: hits are ordered by their words alone"
    try:
        encoder.encode(["How do I close it?"], kind="query")
    except ModelError as error:
        return f"{encoder.name}, which fails: {error}"
    return encoder.name


def describe_context(parts: Parts) -> str:
    """Tried once, as the rewriter is."""
    from bespeak.errors import ModelError
    from bespeak.records import Profile, Turn

    if parts.context is None:
        return "by words picked of them" if parts.terms else "by their last turn"
    name = parts.context.encoder.name
    try:
        parts.context.encode("How do I close it?", Profile(turns=(Turn("How do I open a file?", "", ""),)))
    except ModelError as error:
        return f"{name}, which fails: {error}"
    return f"read by {name}"


def describe_store(ctx: click.Context, options: dict[str, Any], store: EventStore) -> str:
    """Where profiles lie; where they cannot be read searches pass as they come, and start being personal later."""
    from datetime import UTC, datetime

    from bespeak.errors import StoreError
    from bespeak.records import UserKey

    place = f"in the cluster, by {urlsplit(options['upstream'][0]).netloc}"
    if options["profiles"] == "sqlite":
        place = str((ctx.obj.data / "bespeak.db").resolve())
    try:
        store.profile(UserKey("", "nobody"), "", datetime.now(UTC))
    except StoreError as error:
        return f"{place}; nothing is personalised yet: {error}"
    return place


# Listening.


def bind(host: str, port: int) -> socket.socket:
    """Raises UsageError where the port is taken, or the address is not this machine's."""
    from bespeak.errors import UsageError

    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise UsageError(
            f"cannot listen on {host} port {port} ({reason}): choose others with --host and --port"
        ) from error


def refuse_itself(urls: Sequence[str], host: str, port: int) -> None:
    """A proxy in front of itself would pass each request on without end. Raises UsageError."""
    from bespeak.errors import UsageError
    from bespeak.proxy.routes import is_loopback

    for parts in map(urlsplit, urls):
        named = parts.hostname or ""
        here = named == host or (is_loopback(named) and (is_loopback(host) or host in ("", "0.0.0.0", "::")))
        if here and parts.port == port:
            raise UsageError(f"--upstream names the proxy's own port {port}: give the URL of Elasticsearch")


class OneLine(logging.Formatter):
    """A line for each record. Of an exception its kind alone: its message may hold what a client sent."""

    def format(self, record: logging.LogRecord) -> str:
        told = (record.getMessage().splitlines() or [""])[0]
        if record.exc_info and record.exc_info[0]:
            told = f"{told} ({record.exc_info[0].__name__})"
        return f"{self.formatTime(record)} {record.levelname} {record.name}: {told}"


def log_lines() -> None:
    """Warnings to stderr. What the client of the profiles' store warns of is told by the store's own faults."""
    shown = logging.StreamHandler()
    shown.setFormatter(OneLine())
    logging.basicConfig(handlers=[shown], level=logging.WARNING)
    for name in ("elastic_transport", "elasticsearch", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def listen(proxy: Proxy, listener: socket.socket) -> None:
    """Serves until it is told to stop."""
    import uvicorn

    from bespeak.proxy.http.serving import server_config

    class Server(uvicorn.Server):
        """The first signal lets what is in flight finish, the next breaks it off; events are written in both cases."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            if not self.should_exit:
                self.should_exit = True
                return
            for task in tuple(self.server_state.tasks):
                task.get_loop().call_soon_threadsafe(task.cancel)
            for connection in tuple(self.server_state.connections):
                connection.loop.call_soon_threadsafe(connection.transport.abort)

    Server(server_config(proxy, timeout_graceful_shutdown=GRACE_S)).run([listener])
