"""`bespeak serve`: the proxy in front of Elasticsearch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bespeak.events import EventStore


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
@click.option("--profiles", type=click.Choice(["sqlite", "elasticsearch"]), default="sqlite", show_default=True,
              help="Where profiles are kept: on this machine, or in the cluster for several proxies.")  # fmt: skip
@click.option("--api-key", metavar="KEY", help="For profiles in the cluster: an encoded API key.")
@click.option("--basic", metavar="USER:PASSWORD", help="For profiles in the cluster: a user with a password.")
@click.option("--typed", default="", metavar="PATH",
              help="Where the user's text stands in a query of several, as query.bool.must.0.match.title.")  # fmt: skip
@click.option("--rewriter", type=click.Choice(["model", "last-turn", "none"]), default="model", show_default=True)
@click.option("--encoder", help="A model's name or folder; the shipped one if not given.")
@click.option("--weights", default=None, metavar="L,E,U", help="How lexical, embedding and user scores count.")
@click.option("--window", type=click.IntRange(1, 1000), help="Hits that are reranked.")
@click.option("--rewrite-ms", type=click.FloatRange(min=1), help="Time that a rewrite may take, in milliseconds.")
@click.option("--rerank-ms", type=click.FloatRange(min=1), help="Time that reranking may take, in milliseconds.")
@click.option("--model-runs", type=click.IntRange(1), help="Models that run at once; half of the cores if not given.")
@click.option("--connections", default=100, show_default=True, type=click.IntRange(1), help="To each node at most.")
@click.option("--timeout-s", default=60.0, show_default=True, type=click.FloatRange(min=0.1),
              help="Seconds that Elasticsearch may take to begin an answer.")  # fmt: skip
@click.pass_context
def serve(ctx: click.Context, /, **options: Any) -> None:
    """Stand between any client and Elasticsearch, and personalise the searches that name a user.

    All else passes untouched. Stop it with Ctrl-C or SIGTERM: what is in flight is finished.
    """
    from bespeak.proxy.assembly import assemble
    from bespeak.proxy.identity import JwtKey, Share
    from bespeak.proxy.routes import check_binding, read_token
    from bespeak.proxy.upstream import Upstream
    from bespeak_cli.parts import build_parts, open_rewriter
    from bespeak_cli.search import read_settings

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
    store = open_store(ctx, options)
    rewriter = open_rewriter(options["rewriter"], ctx.obj.cache, store)
    parts = build_parts(read_settings(options), rewriter, options["encoder"], ctx.obj.cache, threads=1)
    vectors = ctx.obj.cache / "vectors.db"
    proxy = assemble(
        upstream, store, parts, vectors, token=token, jwt_key=jwt_key, share=share,
        model_runs=options["model_runs"], typed_path=options["typed"],
    )  # fmt: skip
    listen(proxy, options["host"], options["port"])


def open_store(ctx: click.Context, options: dict[str, Any]) -> EventStore:
    """A proxy waits little for a store: a search that comes late is worse than one that is not personal."""
    from bespeak.errors import UsageError

    if options["profiles"] == "elasticsearch":
        from bespeak.stores.elastic import ElasticsearchStore
        from bespeak_cli.engine import credentials

        return ElasticsearchStore(
            options["upstream"][0],
            api_key=options["api_key"],
            basic=credentials(options["basic"]),
            ca_file=options["ca_file"],
            timeout_s=STORE_S,
        )
    from bespeak.stores.sqlite import SqliteStore

    for name in ("api_key", "basic"):
        if options[name]:
            raise UsageError(f"--{name.replace('_', '-')} is for profiles in the cluster: add --profiles elasticsearch")
    return SqliteStore(ctx.obj.data / "bespeak.db", timeout_s=STORE_S)


STORE_S = 2.0


def listen(proxy: Any, host: str, port: int) -> None:
    """Serves until it is told to stop. Raises StoreError where the port is taken."""
    import logging
    import socket

    import uvicorn

    from bespeak.errors import UsageError
    from bespeak.proxy.serving import server_config

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port} ({error.strerror}): choose another with --port"
        ) from error
    with listener:
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"Bespeak is at http://{shown}:{listener.getsockname()[1]}", err=True)
        uvicorn.Server(server_config(proxy)).run([listener])
