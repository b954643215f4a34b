"""gatewayd: one daemon between OpenAI-style clients and the inference servers that answer them.

``docs/architecture.rst`` draws the house; :mod:`gatewayd.daemon.service` is where it starts to run.
"""

__version__ = "0.1.0"
