"""Machine translation of a collection's captions, or of any caption file."""
