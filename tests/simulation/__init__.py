"""The whole engine on a virtual clock, with every effect made to fail in every way."""
