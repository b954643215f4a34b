"""Formats: pure functions and state machines. No I/O, no Twisted, no clock."""
