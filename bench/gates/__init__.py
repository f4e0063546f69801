"""What gates decide, and how soon: this project's rule and three rivals on the same streams of requests."""
