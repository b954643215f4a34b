"""Joins a backend's reply to a client's request."""
