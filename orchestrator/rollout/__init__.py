"""The pure core: what a rollout is, how it moves, and which world it wants.

Nothing here does I/O, reads a clock or raises on data. Times are seconds since the epoch (UTC) and come
in as arguments; shares are whole percents.
"""
