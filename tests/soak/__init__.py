"""Random exchanges through the whole gateway in memory, judged by the promises of the gateway.

``network`` has sockets without a kernel, ``backend`` and ``client`` are their far ends, ``world``
runs one world from a seed, ``oracle`` judges it. ``python -m tests.soak`` runs many worlds.
"""
