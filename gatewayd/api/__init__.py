"""The client's side: connections, routes, who may call, and how much."""
