"""Faults put into runs and files on purpose, and what pycap makes of them."""
