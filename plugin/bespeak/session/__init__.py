"""Which parts of a session and of a user's statements a query depends on."""
