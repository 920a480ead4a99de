"""Rewrites a query, with what is known about the user, into one that stands alone."""
