"""The run directory: writing it, scoring it, and showing it."""
