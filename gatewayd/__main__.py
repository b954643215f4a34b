"""``gatewayd token NAME``, ``gatewayd reload PID``: commands that run beside the daemon.

Also ``python -m gatewayd``.
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys

from gatewayd import __version__
from gatewayd.daemon.reload_command import ReloadError, reload
from gatewayd.settings.sources import NAME


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="gatewayd",
        description="Commands beside the daemon, which is started with: twistd gatewayd",
    )
    parser.add_argument("--version", action="version", version=f"gatewayd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    token = commands.add_parser(
        "token",
        help="make a bearer token for a client",
        description="Make a bearer token. It is shown once; the settings hold only its digest.",
    )
    token.add_argument("name", metavar="NAME", help="name of the client: letters, digits and . _ -")
    reloading = commands.add_parser(
        "reload",
        help="have a running daemon read its settings again",
        description="Send SIGHUP to a daemon and wait; the exit status is 1 if it did not reload.",
    )
    reloading.add_argument("pid", metavar="PID", type=int, help="process ID of its main process")
    options = parser.parse_args(arguments)
    if options.command == "reload":
        return _reload(options.pid)
    if not NAME.fullmatch(options.name):
        token.error("NAME must be letters, digits and . _ -, at most 64")
    return _token(options.name)


def _token(name: str) -> int:
    secret = f"gw-{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(secret.encode("ascii")).hexdigest()
    print("# Give this to the client; it is shown only now:", file=sys.stderr)
    print(secret)
    print("# Add this to the ini file, then reload or restart:", file=sys.stderr)
    print(f"[token {name}]\nsha256 = {digest}")
    return 0


def _reload(pid: int) -> int:
    try:
        reload(pid)
    except ReloadError as error:
        print(f"gatewayd: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
