"""From a query and what is known of the user to a query that stands alone."""
