"""An Elasticsearch 8 or 9 cluster through the official client. Each fault becomes a sentence without credentials."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bespeak.errors import EngineError, EngineRefused, EngineUnreachable, UsageError


def reason_of(error: Any) -> str:
    """Elasticsearch's own reason on one line: that of the root cause, if it names one."""
    if isinstance(error, Mapping):
        inner = error.get("caused_by") or next(iter(error.get("root_cause", ())), None) or error
        while isinstance(inner.get("caused_by"), Mapping):
            inner = inner["caused_by"]
        error = inner.get("reason") or error.get("reason") or error.get("type")
    return " ".join(str(error or "it gave no reason").split())[:300]


class Cluster:
    """A cluster and how to reach it. Safe to use from several threads. Sends nothing before the first call.

    `reason` gives the reason of a refusal from the `error` of the answer.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        basic: tuple[str, str] | None = None,
        ca_file: Path | None = None,
        timeout_s: float = 30.0,
        reason: Callable[[Any], str] = reason_of,
    ) -> None:
        from elasticsearch import Elasticsearch

        self.url, in_url = read_url(url)
        basic = basic or in_url
        if api_key and basic:
            raise UsageError("give Elasticsearch an API key or a user with a password, not both")
        self.timeout_s, self._has_credentials, self._reason = timeout_s, bool(api_key or basic), reason
        options: dict[str, Any] = {"api_key": api_key, "basic_auth": basic}
        if ca_file is not None:
            options["ca_certs"] = str(ca_file)
        with self.engine_errors():
            self.client = Elasticsearch(
                self.url,
                request_timeout=timeout_s,
                max_retries=1,
                retry_on_timeout=False,
                **{name: value for name, value in options.items() if value},
            )

    @contextmanager
    def engine_errors(
        self, missing: Callable[[], EngineError] | None = None, timeout_s: float | None = None
    ) -> Iterator[None]:
        """Raises an EngineError for any fault of the client; `missing` makes the one for a 404.

        `timeout_s` is how long the call waits, if not as long as the cluster's other calls.
        """
        import elastic_transport

        from elasticsearch import ApiError, UnsupportedProductError

        try:
            yield
        except UnsupportedProductError as error:
            raise self._not_elasticsearch() from error
        except ApiError as error:
            if "x-elastic-product" not in error.meta.headers and error.meta.status in (200, 400, 404, 405, 406, 415):
                raise self._not_elasticsearch() from error
            raise self.refused(error.meta.status, error.body, missing) from error
        except elastic_transport.ConnectionTimeout as error:
            raise EngineUnreachable(
                f"Elasticsearch at {self.url} did not answer within {timeout_s or self.timeout_s:g} s: "
                "try again in a moment"
            ) from error
        except elastic_transport.TlsError as error:
            raise EngineUnreachable(
                f"no secure connection to {self.url} ({_cause(error)}): give the certificate of its authority, or use"
                " http:// if the server has no TLS"
            ) from error
        except elastic_transport.ConnectionError as error:
            raise EngineUnreachable(
                f"no answer from Elasticsearch at {self.url} ({_cause(error)}): is it running, and is the URL right?"
            ) from error
        except elastic_transport.SerializationError as error:
            raise self._not_elasticsearch() from error

    def refused(self, status: int, body: Any, missing: Callable[[], EngineError] | None = None) -> EngineError:
        """The error for an answer with the status of a refusal."""
        reason = self._reason(body.get("error") if isinstance(body, Mapping) else None)
        if status == 401:
            what = "refused the credentials" if self._has_credentials else "wants credentials"
            return EngineRefused(f"Elasticsearch at {self.url} {what}: check the API key, or user and password")
        if status == 403:
            return EngineRefused(f"Elasticsearch at {self.url} does not allow these credentials to do this: {reason}")
        if status == 404 and missing is not None:
            return missing()
        if status in (429, 502, 503, 504):
            return EngineUnreachable(
                f"Elasticsearch at {self.url} is overloaded or not ready (status {status}): try again in a moment"
            )
        if 300 <= status < 400:
            return EngineRefused(f"{self.url} redirects (status {status}): give Elasticsearch's own URL")
        return EngineRefused(f"Elasticsearch at {self.url} refused (status {status}): {reason}")

    def close(self) -> None:
        self.client.close()

    def _not_elasticsearch(self) -> EngineRefused:
        return EngineRefused(f"the server at {self.url} is not Elasticsearch 8 or 9: check the URL and its port")


def read_url(url: str) -> tuple[str, tuple[str, str] | None]:
    """The URL with a port and without credentials, and the credentials in it. Raises UsageError.

    >>> read_url("https://me:secret@search.example/")
    ('https://search.example:443', ('me', 'secret'))
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 9200, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        parts, port = urlsplit(""), 0
    if not parts.hostname:
        raise UsageError("the URL of Elasticsearch must look like http://127.0.0.1:9200 or https://search.example")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    credentials = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}", credentials


def _cause(error: Any) -> str:
    """The innermost message of a chain of errors, without the object address that urllib3 puts before it."""
    while getattr(error, "errors", ()):
        error = error.errors[0]
    message = str(getattr(error, "reason", None) or error)
    return re.sub(r"^(<.*>|HTTPS?Connection(Pool)?\(.*?\)): |Failed to establish a new connection: ", "", message)[:200]
