"""What of a session and of a user's statements a query leans on."""
