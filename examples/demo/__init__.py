"""The demo: one good release, three bad ones, a load, and what its users saw."""
