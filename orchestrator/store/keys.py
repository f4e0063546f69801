"""The names of everything that is kept in Redis."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Names under one prefix, so that several orchestrators can share a server."""

    prefix: str = "orchestrator"

    @property
    def requests(self) -> str:
        """Stream that producers append to."""
        return f"{self.prefix}:requests"

    @property
    def group(self) -> str:
        """Consumer group of the request stream; the one consumer is whoever holds the lease."""
        return "orchestrator"

    @property
    def acknowledged(self) -> str:
        """Stream of one entry, whose id is the highest of the requests that were acknowledged."""
        return f"{self.prefix}:acknowledged"

    @property
    def events(self) -> str:
        """Stream of everything that happened."""
        return f"{self.prefix}:events"

    @property
    def dead(self) -> str:
        """Stream of requests that could not be carried out, each with the reason."""
        return f"{self.prefix}:dead"

    @property
    def lease(self) -> str:
        """Token of the daemon that drives."""
        return f"{self.prefix}:lease"

    @property
    def epoch(self) -> str:
        """Counter that tokens come from."""
        return f"{self.prefix}:epoch"

    @property
    def services(self) -> str:
        """Set of the services that have a state."""
        return f"{self.prefix}:services"

    @property
    def wanted(self) -> str:
        """Hash of what edges are to serve, by service."""
        return f"{self.prefix}:wanted"

    @property
    def wanted_news(self) -> str:
        """Stream of what has changed in that last: `service`, and the hash's version `before` and `after`."""
        return f"{self.prefix}:wanted:news"

    @property
    def edges(self) -> str:
        """Set of the edges that have said anything."""
        return f"{self.prefix}:edges"

    def edge(self, name: str) -> str:
        """Hash of what an edge says that it serves, by service; it expires when the edge is away."""
        return f"{self.prefix}:edge:{name}"

    def receipt(self, service: str, key: str) -> str:
        """Hash of `fingerprint` and `entry`: what an idempotency key was used for."""
        return f"{self.prefix}:receipt:{service}:{key}"

    @property
    def tokens(self) -> str:
        """Hash of API tokens (JSON) by id."""
        return f"{self.prefix}:tokens"

    def session(self, digest: str) -> str:
        """Id of the token that a session of the dashboard was opened with."""
        return f"{self.prefix}:session:{digest}"

    def nonce(self, nonce: str) -> str:
        """Id of the request that came with a nonce, while that may not come again."""
        return f"{self.prefix}:nonce:{nonce}"

    def bookmark(self, reader: str) -> str:
        """Id of the last event that a reader has dealt with."""
        return f"{self.prefix}:bookmark:{reader}"

    def state(self, service: str) -> str:
        """Hash of `data` (JSON) and `version` of one service."""
        return f"{self.prefix}:state:{service}"
