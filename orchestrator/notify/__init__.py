"""Chat and incident readers of the event stream."""
