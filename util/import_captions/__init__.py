"""From captions as people have them to the layout of the data: `python -m util.import_captions`."""
