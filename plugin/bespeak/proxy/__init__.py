"""The proxy between clients and Elasticsearch, which personalises the searches of named users."""

from bespeak.proxy.app import OwnRoutes, Proxy, SearchRoute
from bespeak.proxy.http.upstream import Answer, Headers, Upstream

__all__ = ["Answer", "Headers", "OwnRoutes", "Proxy", "SearchRoute", "Upstream"]
