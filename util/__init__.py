"""What a person runs: `python -m util.<name> --help`."""

import basic  # noqa: F401  (before torch: see there)
