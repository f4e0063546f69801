"""The figures that the documentation quotes, each against a peer or a baseline in the same run."""
