"""The metric names that Gin services really expose."""

from orchestrator.ports.metrics import ENGINE, MetricSource

PRESETS = {
    # promhttp-style middleware around prometheus/client_golang.
    "client_golang": MetricSource(
        requests="http_requests_total",
        status_label="code",
        error_pattern="5..",
        latency="http_request_duration_seconds",
        ignore=(("path", "/metrics|/health|/healthz|/ready|/readyz"),),
    ),
    # github.com/zsais/go-gin-prometheus.
    "go-gin-prometheus": MetricSource(
        requests="gin_requests_total",
        status_label="code",
        error_pattern="5..",
        latency="gin_request_duration_seconds",
        ignore=(("url", "/metrics|/health|/healthz|/ready|/readyz"),),
    ),
    # OpenTelemetry semantic conventions 1.23 and later, as the Prometheus exporter names them.
    "opentelemetry": MetricSource(
        requests="http_server_request_duration_seconds_count",
        status_label="http_response_status_code",
        error_pattern="5..",
        latency="http_server_request_duration_seconds",
        ignore=(("http_route", "/metrics|/health|/healthz|/ready|/readyz"),),
    ),
    # What the daemon counts from nginx' log, for services that expose nothing themselves.
    "nginx": MetricSource(
        requests="nginx_requests_total",
        status_label="code",
        error_pattern="5..",
        latency="nginx_request_duration_seconds",
        cpu=ENGINE,
        at_edge=True,
    ),
}
