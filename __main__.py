"""`python -m crushproof`, the same as the command `crushproof`."""

from __future__ import annotations

from .audit.cli import main

if __name__ == "__main__":
    main()
