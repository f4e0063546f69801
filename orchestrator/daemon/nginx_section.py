"""The `nginx` section of a service's file: who goes where, and the generated `server` block."""

import re
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from orchestrator.daemon.section import Section
from orchestrator.daemon.units import Duration
from orchestrator.traffic.options import Audience, EdgeOptions, ServerBlock, Tls

ConfWord = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:*\[\]/ -]+$")]
ConfPath = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_./-]+$")]
UrlPath = Annotated[str, StringConstraints(pattern=r"^/[A-Za-z0-9_./-]*$")]
IPV4 = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", re.ASCII)
NAMES = {"cookie": "[A-Za-z0-9_]+", "header": "[A-Za-z0-9-]+"}
"""What nginx can name in a variable."""

ISSUED = "release_user"
"""The cookie that nginx gives to users who are to be told apart and have none."""


class TlsSection(Section):
    """How clients are spoken to."""

    certificate: ConfPath = Field(description="PEM file of the certificate and its chain, as nginx sees it")
    key: ConfPath = Field(description="PEM file of the key")
    http2: bool = True
    hsts: Duration = Field(0.0, description="For how long browsers use HTTPS alone; 0: not told")
    redirect_from: ConfWord | None = Field(None, description="Plain requests there are sent to HTTPS")
    acme_webroot: ConfPath | None = Field(None, description="ACME challenges at redirect_from come from here")

    @model_validator(mode="after")
    def _right(self) -> "TlsSection":
        if self.acme_webroot and not self.redirect_from:
            raise ValueError('acme_webroot: needs redirect_from, for example "80"')
        return self

    def options(self) -> Tls:
        """As the edge has it."""
        return Tls(
            certificate=self.certificate,
            key=self.key,
            http2=self.http2,
            hsts=int(self.hsts),
            redirect_from=self.redirect_from or "",
            acme_webroot=self.acme_webroot or "",
        )


class StaticSection(Section):
    """Answers that may be cached."""

    path: UrlPath
    max_age: Duration = Field(gt=0)


class ServerSection(Section):
    """A generated `server` block."""

    listen: ConfWord = "80"
    server_name: ConfWord = "_"
    path: UrlPath = "/"
    join: str = Field("", description="Service in whose block the path is; unset: a block of its own")
    read_timeout: Duration = 60.0
    maintenance_page: ConfPath | None = Field(None, description="HTML answered in maintenance, with 503")
    access_log: ConfPath | None = Field(None, description="nginx' usual log; unset: as for all of nginx")
    gzip: bool = False
    static: StaticSection | None = None
    tls: TlsSection | None = None

    @model_validator(mode="after")
    def _right(self) -> "ServerSection":
        of_block = {"listen", "server_name", "gzip", "tls"} & self.model_fields_set
        if self.join and of_block:
            raise ValueError(f"{min(of_block)}: is that of the block of {self.join!r}, which is joined")
        if self.static and self.static.path == self.path:
            raise ValueError(f"static/path: {self.path} is the path of all; name a part of it")
        return self

    def block(self) -> ServerBlock:
        """As the edge has it."""
        return ServerBlock(
            listen=self.listen,
            server_name=self.server_name,
            path=self.path,
            join=self.join,
            read_timeout=self.read_timeout,
            maintenance_page=self.maintenance_page or "",
            access_log=self.access_log or "",
            gzip=self.gzip,
            static_path=self.static.path if self.static else "",
            static_age=int(self.static.max_age) if self.static else 0,
            tls=self.tls.options() if self.tls else None,
        )


class StickySection(Section):
    """How one user is told from another."""

    by: Literal["cookie", "header", "address"]
    name: str = Field("", description="Of the cookie or header; a cookie without one is given out by nginx")

    @model_validator(mode="after")
    def _right(self) -> "StickySection":
        if self.name and self.by == "address":
            raise ValueError("name: an address has none")
        if self.by == "header" and not self.name:
            raise ValueError("name: which header?")
        if self.name and not re.fullmatch(NAMES[self.by], self.name, re.ASCII):
            raise ValueError(f"name: {self.name!r} does not match {NAMES[self.by]}")
        return self

    @property
    def variables(self) -> tuple[str, ...]:
        """Of nginx."""
        if self.by == "address":
            return ("remote_addr",)
        if self.by == "header":
            return (f"http_{self.name.lower().replace('-', '_')}",)
        return (f"cookie_{self.name}",) if self.name else ("uid_got", "uid_set")


class ForceSection(Section):
    """What may name the release that answers: `candidate`, `stable`, or a release id."""

    header: str = Field("", pattern=f"^({NAMES['header']})?$")
    cookie: str = Field("", pattern=f"^({NAMES['cookie']})?$")


class ServiceNginxSection(Section):
    """How nginx serves the service."""

    method: Literal["round_robin", "least_conn", "ip_hash"] = "round_robin"
    max_fails: int = Field(1, ge=0)
    fail_timeout: int = Field(2, ge=1, description="Seconds")
    keepalive: int = Field(32, ge=1)
    backup: list[str] = Field([], description="Servers of yours that are asked when no other answers")
    sticky: StickySection | None = None
    force: ForceSection | None = None
    mirror: bool = Field(default=False, description="Copy GET and HEAD to a candidate in preview")
    server: ServerSection | None = None

    @model_validator(mode="after")
    def _right(self) -> "ServiceNginxSection":
        for address in self.backup:
            host, _, port = address.rpartition(":")
            if not (IPV4.fullmatch(host) and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):  # noqa: PLR2004
                raise ValueError(
                    f"backup: {address!r} is not an IPv4 address and port, such as 10.0.0.9:8080"
                )
        if self.method == "ip_hash" and self.backup:
            raise ValueError("backup: nginx knows no backup servers with method: ip_hash")
        if self.mirror and self.server is None:
            raise ValueError("mirror: needs a generated block; set server")
        return self

    def options(self) -> EdgeOptions:
        """As the edge has it."""
        audience = None
        if self.sticky or self.force:
            force = self.force or ForceSection()
            issued = self.sticky is not None and self.sticky.by == "cookie" and not self.sticky.name
            audience = Audience(
                header=force.header,
                cookie=force.cookie,
                sticky=self.sticky.variables if self.sticky else (),
                issued=ISSUED if issued else "",
            )
        return EdgeOptions(
            method=self.method,
            max_fails=self.max_fails,
            fail_timeout=self.fail_timeout,
            keepalive=self.keepalive,
            backup=tuple(self.backup),
            audience=audience,
            mirror=self.mirror,
            server=self.server.block() if self.server else None,
        )
