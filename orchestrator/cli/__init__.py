"""Verbs for people and CI."""
