"""What answers: backends and the HTTP client that reaches them."""
