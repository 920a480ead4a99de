"""The proxy: stands between any client and Elasticsearch, and personalises the searches of those who ask for it."""

from bespeak.proxy.app import Own, Proxy, Searches
from bespeak.proxy.http.upstream import Answer, Headers, Upstream

__all__ = ["Answer", "Headers", "Own", "Proxy", "Searches", "Upstream"]
