"""An ASGI app on a real loopback port, for tests that need real clients."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn

from bespeak.proxy.serving import server_config


@contextlib.contextmanager
def serving(app: Any, **options: Any) -> Iterator[str]:
    """The URL under which `app` answers until the block is left; what is in flight then is finished."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(server_config(app, **options))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError("the app did not start")
                thread.join(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
