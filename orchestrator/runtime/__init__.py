"""Containers, through Docker: the only package that knows its SDK."""
