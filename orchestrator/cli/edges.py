"""`orchestrator edges`: what the nginx of other hosts serve."""

import json
from typing import Any

from rich.table import Table

from orchestrator.cli.exits import OK, USAGE
from orchestrator.cli.session import Output, err, escape, out, redis_of
from orchestrator.daemon.config import Config
from orchestrator.store.board import RedisBoard
from orchestrator.store.keys import Keys
from orchestrator.traffic.words import told


async def show_edges(config: Config, forget: str, output: Output) -> int:
    """Print them, or forget one; returns the exit code.

    Raises:
        Fault: Redis does not answer.
    """
    async with redis_of(config) as redis:
        board = RedisBoard(redis, Keys(config.settings.redis.prefix), config.settings.edges.ttl)
        if forget:
            if not await board.forget(forget):
                names = ", ".join(await board.known()) or "none"
                err.print(f"[red]error[/]: no edge {escape(repr(forget))} is known; there are: {names}")
                return USAGE
            out.print(f"{escape(forget)} is forgotten; it comes back if it says anything")
            return OK
        reports = await board.reports()
        heard = {name: told(texts) for name, texts in reports.items() if texts is not None}
        found = {name: heard.get(name) for name in await board.known()}
    rows: list[dict[str, Any]] = []
    for name, services in found.items():
        rows += [
            {
                "edge": name,
                "service": s,
                "away": False,
                "served": r.edge.served,
                "error": r.edge.error or r.edge.silence,
            }
            for s, r in (services or {}).items()
        ] or [{"edge": name, "service": "", "away": services is None, "served": None, "error": ""}]
    if output is Output.JSON:
        out.print(json.dumps(rows, indent=2), markup=False)
        return OK
    if not rows:
        out.print("no nginx on another host has said anything: this one is served by the daemon itself")
        return OK
    table = Table("edge", "service", "generation served", "")
    for row in rows:
        note = "away" if row["away"] else row["error"]
        served = "" if row["served"] is None else str(row["served"])
        table.add_row(*map(escape, (row["edge"], row["service"], served, note)))
    out.print(table)
    return OK
