"""A private stack on real parts: Docker, Gin, nginx, Prometheus, the daemon, and a load.

The demo, the acceptance tests and the benches run on it. Everything has its own ports, folders, network and
name prefix; nothing that belongs to the machine is touched, and all of it goes away at the end.
"""
