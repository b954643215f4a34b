"""The client's side: connections, routes, admission, limits."""
