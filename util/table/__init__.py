"""Tables and curves of runs: `python -m util.table`."""
