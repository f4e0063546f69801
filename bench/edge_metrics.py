"""`python -m bench.edge_metrics`: what it costs to count requests at nginx, and whether the count is right.

The same load with and without the log, in turns; the CPU time of nginx and of the reader that a request more
costs, as a share of a core at 5,000 requests a second. The log is begun anew many times meanwhile. The
count is compared with what the Gin service has counted itself.
"""

import asyncio
import statistics
import time
import urllib.request
from dataclasses import replace

from rich.console import Console

from bench.footprint import cpu
from bench.traffic.stage import Stage, stage
from orchestrator.traffic.process import run
from orchestrator.traffic.request_log import RequestLog

out = Console(highlight=False, width=110)

ROUNDS = 4
SECONDS = 8
AT = 5000
LARGEST = 1024 * 1024


def counted_by_gin(on: Stage) -> float:
    """What both instances have counted themselves."""
    total = 0.0
    for address in on.addresses.values():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith("http_requests_total{"):
                    total += float(line.rpartition(" ")[2])
    return total


async def load(on: Stage) -> tuple[int, float]:
    """Requests of one round, and the CPU seconds of nginx' workers."""
    workers = (await on.process.workers()).accepting
    before = sum(map(cpu, workers))
    said = await run(["wrk", "-t1", "-c32", f"-d{SECONDS}s", f"http://127.0.0.1:{on.port}/ping"], 30)
    await asyncio.sleep(1.0)
    return int(said.partition(" requests in ")[0].split()[-1]), sum(map(cpu, workers)) - before


async def main() -> None:
    """Print the figures."""
    async with stage(dynamic=False) as on:
        requests = RequestLog(on.process, on.root / "edge", largest=LARGEST)
        requests.prepare()
        reading = asyncio.create_task(requests.run())
        await asyncio.sleep(0.5)
        nginx: dict[bool, list[float]] = {False: [], True: []}
        reader: list[float] = []
        miscount = total = 0.0
        for number in range(ROUNDS):
            for counted in (False, True) if number % 2 else (True, False):
                on.options = replace(on.options, counted=counted)
                await on.edge.apply(on.plan(50), 1)
                await asyncio.sleep(1.0)
                seen = [requests.counts(v, address) for v, address in on.addresses.items()]
                before, gin = sum(c.codes.total() for c in seen), counted_by_gin(on)
                used = time.process_time()
                number_sent, workers = await load(on)
                nginx[counted].append(workers / number_sent)
                if counted:
                    reader.append((time.process_time() - used) / number_sent)
                    gin = counted_by_gin(on) - gin
                    found = sum(c.codes.total() for c in seen) - before
                    miscount, total = miscount + abs(found - gin), total + gin
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        requests.close()
    with_log, without = (statistics.median(nginx[c]) for c in (True, False))
    read = statistics.median(reader)
    share = [cost * AT * 100 for cost in (with_log - without, read)]
    out.print(f"CPU of nginx a request: {without * 1e6:.1f} us, with the log {with_log * 1e6:.1f} us")
    out.print(f"CPU of the reader a request: {read * 1e6:.1f} us")
    out.print(
        f"at {AT} requests/s: nginx {share[0]:.1f} % + reader {share[1]:.1f} % = {sum(share):.1f} % of a core"
    )
    out.print(f"{total:.0f} requests, a new log every {LARGEST // 1024} KiB: miscounted {miscount:.0f}")


if __name__ == "__main__":
    asyncio.run(main())
