"""Stand-ins for parts that can't be had in great numbers; each passes its contract's suite."""
