"""What a change of traffic costs the users, by the ways that nginx offers."""
