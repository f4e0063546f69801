"""How nginx serves a service, apart from its route."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How a generated `server` block speaks TLS.

    Attributes:
        certificate: PEM file of the certificate and its chain, as nginx sees it.
        key: PEM file of the key.
        http2: Whether clients may speak HTTP/2.
        hsts: Seconds for which browsers are told to use HTTPS alone; 0 tells nothing.
        redirect_from: Address and port whose plain requests are sent to HTTPS; empty for none.
        acme_webroot: Folder from which ACME's challenges are answered at `redirect_from`; empty for none.
    """

    certificate: str
    key: str
    http2: bool = True
    hsts: int = 0
    redirect_from: str = ""
    acme_webroot: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerBlock:
    """A whole `server` block, for those who have none yet.

    Attributes:
        path: The location that is proxied.
        join: The service in whose block the location is, instead of one of its own; empty for its own.
        read_timeout: Seconds between two reads of an answer.
        maintenance_page: HTML file that is answered with 503 while the service is in maintenance, as nginx
            sees it; empty: there is no such switch.
        access_log: File of nginx' usual log, as nginx sees it; empty leaves it to the rest of its
            configuration, which does not hold where requests are counted.
        gzip: Whether text is compressed.
        static_path: Prefix of paths whose answers may be cached; empty for none.
        static_age: Seconds for which they may.
    """

    listen: str = "80"
    server_name: str = "_"
    path: str = "/"
    join: str = ""
    read_timeout: float = 60.0
    maintenance_page: str = ""
    access_log: str = ""
    gzip: bool = False
    static_path: str = ""
    static_age: int = 0
    tls: Tls | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where this host reaches it."""
        host, _, port = self.listen.split()[0].rpartition(":")
        everywhere = {"": "127.0.0.1", "*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "::1"}  # noqa: S104
        if not port.isdecimal():  # an address without a port
            host, port = self.listen.split()[0], "443" if self.tls else "80"
        return everywhere.get(host, host.strip("[]")), int(port)


@dataclass(frozen=True, slots=True, kw_only=True)
class Audience:
    """Which request goes to which release, where that is not left to the weights.

    Attributes:
        header: A header that names `candidate`, `stable` or a release id; empty for none.
        cookie: A cookie that does.
        sticky: nginx variables whose text tells one user from another; none: users are not told apart.
        issued: Name of the cookie that nginx gives to users who have none; empty for none.
    """

    header: str = ""
    cookie: str = ""
    sticky: tuple[str, ...] = ()
    issued: str = ""

    @property
    def forced_by(self) -> dict[str, str]:
        """The nginx variables that may name a release, by what they are, the weightiest first."""
        header = {"header": f"http_{self.header.lower().replace('-', '_')}"} if self.header else {}
        return header | ({"cookie": f"cookie_{self.cookie}"} if self.cookie else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeOptions:
    """How one service is served.

    Attributes:
        method: How nginx chooses among servers.
        max_fails: Failed attempts that take a server out for `fail_timeout` seconds.
        keepalive: Idle connections to the servers that a worker keeps.
        backup: Servers of the operator's own, `address:port`, that are asked when no other answers.
        audience: Which request goes to which release; None leaves it to the weights.
        counted: Whether requests are written down for the daemon to count.
        mirror: Whether GET and HEAD requests are copied to a candidate in preview.
        server: The generated `server` block; None leaves it to the operator's own configuration.
    """

    method: str = "round_robin"
    max_fails: int = 1
    fail_timeout: int = 2
    keepalive: int = 32
    backup: tuple[str, ...] = ()
    audience: Audience | None = None
    counted: bool = False
    mirror: bool = False
    server: ServerBlock | None = None
