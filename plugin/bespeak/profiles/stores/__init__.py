"""Where events are kept: one file on this machine, or indices that any number of proxies share."""

# What a profile reads at most, newest first, so that its cost does not grow with the history.
STATEMENTS_READ = 500  # more than a profile keeps: a statement may be there several times
SESSION_EVENTS_READ = 200
PREFERENCES_READ = 200  # of each action
REWRITES_KEPT = 100_000
ADD_BATCH = 1000
EXPORT_BATCH = 500
