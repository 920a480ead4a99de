"""Bytes in and out: clients on one side, Elasticsearch on the other."""
