"""Runs random worlds for some minutes: ``python -m tests.soak --minutes 5``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from . import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--seed", type=int, help="run this one alone")
    parser.add_argument("--first", type=int, default=1, help="the first seed (default: 1)")
    options = parser.parse_args()
    began, exchanges, failed = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        runner = run.Runner(Path(folder))
        seed = options.first if options.seed is None else options.seed
        while True:
            found = runner.run(seed)
            if found.problems:
                failed += 1
                print(f"seed {seed}:")
                for problem in found.problems[:10]:
                    print(f"    {problem[:400]}", flush=True)
            exchanges += found.exchanges
            seed += 1
            if options.seed is not None or time.monotonic() - began > options.minutes * 60:
                break
    took = time.monotonic() - began
    print(f"{exchanges} exchanges in {took:.0f} s, up to seed {seed - 1}; {failed} seeds failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
