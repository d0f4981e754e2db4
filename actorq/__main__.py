"""`python -m actorq`: the same as the command `actorq`."""

from __future__ import annotations

import sys

from actorq.cli import main

if __name__ == "__main__":
    sys.exit(main())
