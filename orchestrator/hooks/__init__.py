"""Hooks out: programs and services that are asked, or told, at the phases of a release."""
