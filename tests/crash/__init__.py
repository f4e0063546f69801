"""SIGKILL at every effect of the real daemon on real parts."""
