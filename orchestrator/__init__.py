"""Blue-green and canary releases on plain Docker hosts behind nginx, judged on live metrics."""

__version__ = "0.1.0"
