"""Where events are kept: one file on this machine, or indices that any number of proxies share."""
