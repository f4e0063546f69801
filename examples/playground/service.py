"""A service file for minutes rather than hours."""

from typing import Any


def service_file(name: str, port: int, **changes: Any) -> dict[str, Any]:
    """A service for minutes rather than hours: the full policy in seconds."""
    return {
        "service": name,
        "images": ["gin-api"],
        "container": {
            "port": 8080,
            "instances": 2,
            "memory": "64MiB",
            "cpus": 0.5,
            "stop_grace": "10s",
            "probe": {"successes": 2, "failures": 3},
        },
        "strategy": {
            "steps": [5, 15, 40, 100],
            "first_hold": "5s",
            "hold": "4s",
            "bake": "4s",
            "min_requests": 10,
            "step_deadline": "40s",
        },
        "gates": [
            {"metric": "error_rate", "max": "2%", "for": "1s", "window": "8s", "min_requests": 10},
            {
                "metric": "latency",
                "quantile": 0.99,
                "max": "250ms",
                "max_ratio": 5,
                "margin": "50ms",
                "for": "1s",
                "window": "8s",
                "min_requests": 10,
            },
        ],
        "no_data": {"after": "20s"},
        "deadlines": {"start": "25s", "drain": "5s", "confirm": "15s"},
        "keep_previous": "60s",
        "nginx": {"server": {"listen": f"127.0.0.1:{port}"}},
        **changes,
    }
