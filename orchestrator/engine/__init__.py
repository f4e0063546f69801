"""The imperative shell: one conductor per service, one look at the metrics for all."""
