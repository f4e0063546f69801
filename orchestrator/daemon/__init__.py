"""The only place where the parts meet: configuration, wiring, supervision, signals."""
