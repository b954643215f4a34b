"""Random exchanges through the whole gateway in memory, judged by what was promised.

``network`` has sockets without a kernel, ``backend`` and ``client`` what happens at their far ends,
``world`` drives one run from a seed, ``oracle`` judges it. ``python -m tests.soak`` runs for long.
"""
