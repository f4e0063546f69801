"""What operators see: logs, metrics, the health endpoints, systemd."""
