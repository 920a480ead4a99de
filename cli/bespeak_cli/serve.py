"""`bespeak serve`: the proxy in front of Elasticsearch."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from bespeak_cli.mixing import read_settings, serving_options
from bespeak_cli.store import check_store_options, open_store

if TYPE_CHECKING:
    from bespeak.parts import Parts
    from bespeak.profiles.stores import EventStore
    from bespeak.proxy import Upstream
    from bespeak.proxy.identity import JwtKey

STORE_S = 2.0
"""Seconds to wait for the profile store: a late search is worse than one that is not personal."""

A_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--upstream", required=True, multiple=True, metavar="URL",
              help="Elasticsearch node to send requests to. May be repeated for more nodes.")  # fmt: skip
@click.option("--ca-file", type=A_FILE, help="Certificate (PEM) of the authority that signed the nodes' certificates.")
@click.option("--host", default="127.0.0.1", show_default=True,
              help="Address to listen on. An address that other machines can reach requires --token-file.")  # fmt: skip
@click.option("--port", default=9280, show_default=True, type=click.IntRange(0, 65535),
              help="Port to listen on; 0 picks a free one.")  # fmt: skip
@click.option("--token-file", type=A_FILE, help="File with the token that the routes under /_bespeak require.")
@click.option("--user-key", type=A_FILE,
              help="Accept only users named in a token (JWT) that is signed with the key in this file, a "
              "public key (PEM) or a secret.")  # fmt: skip
@click.option("--share", default="100%", show_default=True, help="Personalise for this share of users.")
@click.option("--compare", metavar="A:B",
              help="Interleave the rankings of two settings on each page; A|B shows each user one of them. A side is "
              "engine, current or a TOML file.")  # fmt: skip
@click.option("--profiles", type=click.Choice(["sqlite", "elasticsearch"]), default="sqlite", show_default=True,
              help="Keep profiles in a SQLite file in --data-dir, or in the cluster, where several proxies share "
              "them.")  # fmt: skip
@click.option("--api-key", metavar="KEY", help="With --profiles elasticsearch: an encoded API key.")
@click.option("--basic", metavar="USER:PASSWORD", help="With --profiles elasticsearch: a user and a password.")
@click.option("--typed", default="", metavar="PATH",
              help="Path of the user's own text in queries with several texts, such as "
              "query.bool.must.0.match.title.")  # fmt: skip
@click.option("--rewriter", type=click.Choice(["model", "last-turn", "none"]), default="model", show_default=True,
              help="Rewrite with the language model, with words of the last turn, or not at all.")  # fmt: skip
@click.option("--encoder", metavar="MODEL", show_default="the shipped one",
    help="Name or folder of an encoder; none for no embeddings.")  # fmt: skip
@serving_options
@click.option("--model-runs", type=click.IntRange(1), show_default="half of the cores",
              help="Run at most this many models at once.")  # fmt: skip
@click.option("--connections", default=100, show_default=True, type=click.IntRange(1),
              help="Send at most this many requests to Elasticsearch at once; others wait.")  # fmt: skip
@click.option("--timeout-s", default=60.0, show_default=True, type=click.FloatRange(min=0.1),
              help="Fail a request if Elasticsearch sends nothing for this many seconds.")  # fmt: skip
@click.pass_context
def serve(ctx: click.Context, /, **options: Any) -> None:
    """Personalise the searches of any Elasticsearch client, as a proxy in front of the cluster.

    Point your clients at this address instead of Elasticsearch. Searches that name a user are personalised; every
    other request passes through unchanged.

    Ctrl-C or SIGTERM stops the proxy after the running requests are finished; a second one stops it at once.
    """
    from bespeak.proxy.assembly import ProxyOptions, assemble
    from bespeak.proxy.identity import Share
    from bespeak.proxy.listening import bind, listen, log_warnings, refuse_itself
    from bespeak_cli.compare import read_comparison

    token, jwt_key, share = read_token(options), read_key(options), Share.parse(options["share"])
    upstream = open_upstream(options)
    log_warnings()
    with bind(options["host"], options["port"]) as listener:
        port = listener.getsockname()[1]
        refuse_itself(options["upstream"], options["host"], port)
        store = open_own_store(ctx, options)
        ctx.call_on_close(store.close)
        parts = open_models(ctx, options, store)
        comparison = read_comparison(options["compare"], parts.settings) if options["compare"] else None
        chosen = ProxyOptions(token, jwt_key, share, options["model_runs"], options["typed"], comparison)
        proxy = assemble(upstream, store, parts, ctx.obj.cache / "vectors.db", chosen)
        announce(ctx, options, port, store, parts, jwt_key)
        listen(proxy, listener)


def read_token(options: dict[str, Any]) -> str | None:
    """The token for Bespeak's own routes. Raises UsageError if it is missing where it is needed, or easily guessed."""
    from bespeak.proxy.access import check_binding
    from bespeak.proxy.access import read_token as read

    token = read(options["token_file"]) if options["token_file"] else None
    check_binding(options["host"], token)
    return token


def read_key(options: dict[str, Any]) -> JwtKey | None:
    from bespeak.proxy.identity import JwtKey

    return JwtKey.read(options["user_key"]) if options["user_key"] else None


def open_upstream(options: dict[str, Any]) -> Upstream:
    from bespeak.proxy import Upstream

    return Upstream(
        options["upstream"],
        ca_file=options["ca_file"],
        timeout_s=options["timeout_s"],
        connections=options["connections"],
    )


def open_own_store(ctx: click.Context, options: dict[str, Any]) -> EventStore:
    """The store that --profiles names, in the proxy's own cluster if it is Elasticsearch."""
    from bespeak.errors import StoreError

    check_store_options(options, cluster_options=("api_key", "basic"))
    in_cluster = options["profiles"] == "elasticsearch"
    data = ctx.obj.learnt if in_cluster else ctx.obj.data  # a proxy without data of its own needs no folder
    store = open_store(data, options | {"elasticsearch": options["upstream"][0]}, STORE_S)
    if in_cluster:
        from bespeak.profiles.stores.elastic import ElasticsearchStore

        assert isinstance(store, ElasticsearchStore)
        with contextlib.suppress(StoreError):  # if the cluster is not up yet, the first event makes the indices
            store.prepare()
    return store


def open_models(ctx: click.Context, options: dict[str, Any], store: EventStore) -> Parts:
    """The models that there are. Raises ModelError for an encoder that was named and is missing.

    A proxy never builds the language model: that takes a minute and much memory at each start.
    """
    from bespeak.parts import Models, open_encoder, open_parts
    from bespeak_cli.parts import say

    models = Models(ctx.obj.cache, options["rewriter"], options["encoder"], encoder_threads=1)
    if options["encoder"] and (encoder := open_encoder(models)):  # otherwise "none", or the shipped one
        models = replace(models, encoder=encoder)
    return open_parts(models, read_settings(options), rewrites=store, learnt=ctx.obj.learnt, warn=say)


def announce(
    ctx: click.Context, options: dict[str, Any], port: int, store: EventStore, parts: Parts, key: JwtKey | None
) -> None:
    """Prints to stderr where the proxy listens, and with what."""
    from bespeak_cli.startup import Startup

    startup = Startup(
        upstreams=options["upstream"],
        ca_file=options["ca_file"],
        store=store,
        store_place=describe_place(ctx, options),
        parts=parts,
        users=f"as signed ({key.algorithm})" if key else "as each request says; use --user-key to require signatures",
        share=options["share"],
        has_token=bool(options["token_file"]),
    )
    host = f"[{options['host']}]" if ":" in options["host"] else options["host"]
    lines = startup.lines()
    click.echo(f"Bespeak is at http://{host}:{port}", err=True)
    for name, description in lines:
        click.echo(f"  {name:<10} {description}", err=True)


def describe_place(ctx: click.Context, options: dict[str, Any]) -> str:
    """Where profiles are kept."""
    if options["profiles"] == "sqlite":
        return str((ctx.obj.data / "bespeak.db").resolve())
    return f"in the cluster, by {urlsplit(options['upstream'][0]).netloc}"
