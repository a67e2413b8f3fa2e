"""The demo's corpus of drawn scenes: `python -m util.make_demo`."""
