"""Measurements of pycap's speed; nothing in the library imports this."""
