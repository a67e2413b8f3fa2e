"""How fast each stage is, beside what it computes: `python -m util.benchmark`."""
