"""Backends, and the HTTP client that sends requests to them."""
