"""nginx: render, write, test, reload, confirm."""
