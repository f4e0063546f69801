"""Measurements from Prometheus, and the targets that it is to scrape."""
