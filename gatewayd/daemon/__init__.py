"""What runs the gateway: start, reload, stop, worker processes, and what systemd is told."""
