"""The proxy: it stands between clients and Elasticsearch, and personalises the searches of users who are named."""

from bespeak.proxy.app import OwnRoutes, Proxy, SearchRoute
from bespeak.proxy.http.upstream import Answer, Headers, Upstream

__all__ = ["Answer", "Headers", "OwnRoutes", "Proxy", "SearchRoute", "Upstream"]
