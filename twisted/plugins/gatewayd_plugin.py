"""Tells twistd that there is a ``gatewayd`` and where it lives."""

from twisted.application.service import ServiceMaker

gatewayd = ServiceMaker(
    "gatewayd",
    "gatewayd.tap",
    "An OpenAI-compatible inference gateway.",
    "gatewayd",
)
