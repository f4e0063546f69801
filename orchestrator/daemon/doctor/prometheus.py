"""Prometheus: whether it answers, finds our instances, and can scrape them."""

import json
import re
from typing import Any
from urllib.parse import urlsplit

from orchestrator.daemon.adapters import authorization, make_prometheus
from orchestrator.daemon.config import Config
from orchestrator.daemon.doctor.check import Check, get
from orchestrator.ports.faults import Fault


async def prometheus(config: Config) -> list[Check]:
    """Everything about Prometheus."""
    section = config.settings.prometheus
    if not section.url:
        return [Check("prometheus", True, "not configured: no gates")]
    url = section.url.rstrip("/")
    try:
        connection, headers = make_prometheus(config.settings), authorization(config.settings)
        try:
            await connection.ask("vector(1)")
        finally:
            connection.close()
    except Fault as error:
        return [Check("prometheus", False, f"{url}: {error}", "start it, or correct prometheus/url")]
    text = await get(f"{url}/api/v1/status/config", headers)
    known = discovers(text, config.settings.http.targets)
    mend = f"add a scrape job with http_sd_configs: [{{url: {config.settings.http.targets}}}]"
    missing = f", but none of its http_sd_configs reads {config.settings.http.targets}"
    detail = f"answers at {section.url}" + ("" if known else missing)
    found = await get(f"{url}/api/v1/targets?state=active", headers)
    return [Check("prometheus", known, detail, mend), *unscraped(config, found)]


def discovers(text: str, ours: str) -> bool:
    """Whether Prometheus' configuration, as its API shows it, reads our targets: each daemon serves its own.

    A host has many names, so only the port is compared; without one there is a proxy between.
    """
    found = re.findall(r"url: (https?://[^\s\\]*/targets)\b", text)
    return any(urlsplit(url).port in (None, urlsplit(ours).port) for url in found)


def unscraped(config: Config, answer: str) -> list[Check]:
    """Instances that Prometheus can't scrape, with its own words, by what `/api/v1/targets` answers."""
    try:
        targets: list[dict[str, Any]] = json.loads(answer)["data"]["activeTargets"]
    except (ValueError, KeyError, TypeError):
        return []
    checks = []
    for target in targets:
        labels, ours = target.get("labels", {}), target.get("discoveredLabels", {}).get("__meta_url", "")
        service = config.services.get(labels.get("service", ""))
        if service is None or not ours.endswith("/targets") or target.get("health") != "down":
            continue
        detail = f"{labels.get('instance')}: {target.get('scrapeUrl')}: {target.get('lastError')}"
        mend = (
            "let the service answer there, correct metrics/path or metrics/port, or set metrics/preset: nginx"
        )
        if service.metrics.preset == "nginx":
            ours = f"http/listen, {config.settings.http.listen}"
            mend = f"the daemon serves it: systemctl start orchestrator, and let Prometheus reach {ours}"
        needed = "" if service.gates else "; no gate needs it"
        checks.append(Check("prometheus target", not service.gates, detail + needed, mend))
    return checks
