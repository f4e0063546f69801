"""Planted bugs, each of which the suite must notice."""
