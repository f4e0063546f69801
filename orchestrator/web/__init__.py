"""The dashboard: server-rendered pages and a small script."""
