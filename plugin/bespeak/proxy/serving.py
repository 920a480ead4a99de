"""How uvicorn serves the proxy: nothing added to an answer, nothing logged of a request."""

from __future__ import annotations

from typing import Any

import uvicorn

KEEP_ALIVE_S = 3600
"""Elasticsearch closes no connection that rests, and its clients count on that."""


def server_config(app: Any, host: str = "127.0.0.1", port: int = 0, **options: Any) -> uvicorn.Config:
    """For `uvicorn.Server`. `options` are uvicorn's own and go before those set here."""
    settled: dict[str, Any] = {
        "http": "httptools",
        "ws": "none",
        "server_header": False,
        "date_header": False,
        "proxy_headers": False,
        "access_log": False,
        "log_config": None,
        "timeout_keep_alive": KEEP_ALIVE_S,
    }
    return uvicorn.Config(app, host=host, port=port, **(settled | options))
