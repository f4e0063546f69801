"""What the engine needs of the world, as protocols of a few methods, and the words both sides share.

Every method has a deadline of its own and raises `Fault` when the other side can't do it.
"""
