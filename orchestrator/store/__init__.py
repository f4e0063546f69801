"""What is kept in Redis: state, events, dead letters, the lease."""
