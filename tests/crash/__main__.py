"""`python -m tests.crash [MODE]`: the daemon is killed before and after each effect, with weights by MODE."""

import asyncio
import functools
import sys

import docker

from examples.playground import gin
from tests.crash.matrix import Report, run


def build(client: docker.DockerClient, version: str, **misbehave: str) -> str:
    return gin.build(client, version, misbehave)


async def main(mode: str) -> bool:
    """Print what was killed; whether no request was lost."""
    reports: list[Report] = []
    for moment in ("before", "after"):
        report = await run(moment, functools.partial(build, docker.from_env()), mode)
        reports.append(report)
        points = [point.partition(": ")[2].rpartition(":")[0] for point in report.points]
        print(f"{mode}, killed {moment} each of {len(points)} effects: {', '.join(points)}")
        print(f"  {report.doubles} of them killed again while they recovered")
        print(f"  {report.lost} of {report.requests} requests lost")
        print(f"  not reached: {', '.join(report.unreached) or 'none'}")
    return not any(report.lost for report in reports)


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "dynamic")) else 1)
