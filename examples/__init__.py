"""Things to try: a Gin service, a private stack, a demo."""
