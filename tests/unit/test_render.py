"""The nginx renderer: what is parsed back equals the model, and nothing hostile gets through."""

import re
from pathlib import Path

import crossplane
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ports.faults import Fault
from orchestrator.rollout.model import Route, Server
from orchestrator.rollout.observation import LocalRollback, OnDisk
from orchestrator.traffic.options import EdgeOptions, ServerBlock
from orchestrator.traffic.render import (
    location_snippet,
    read_header,
    render,
    route_text,
)


def server(**changes: object) -> Server:
    fields = {
        "address": "10.1.0.10:8080",
        "weight": 1,
        "release": "api-1",
        "instance": "api-1-0",
        "container": "c",
        "started_at": "t",
        **changes,
    }
    return Server(**fields)  # type: ignore[arg-type]


def text(route: Route, service: str = "api", options: EdgeOptions | None = None) -> str:
    return render(
        service,
        OnDisk(route=route),
        options or EdgeOptions(),
        token=3,
        listen="127.0.0.1:1",
        folder="/x",
    )


def parse(rendered: str, folder: Path) -> dict[str, list[list[str]]]:
    path = folder / "api.conf"
    path.write_text(f"http {{\n{rendered}\n}}")
    found = crossplane.parse(str(path), check_ctx=False, check_args=False, single=True)
    assert found["status"] == "ok", found["errors"]
    blocks = found["config"][0]["parsed"][0]["block"]
    return {
        b["args"][0]: [d["args"] for d in b["block"] if d["directive"] == "server"]
        for b in blocks
        if b["directive"] == "upstream"
    }


servers = st.builds(
    server,
    address=st.builds(lambda a, p: f"{a}:{p}", st.ip_addresses(v=4), st.integers(1, 65535)),
    weight=st.integers(1, 10_000),
    backup=st.booleans(),
    instance=st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True),
)


@given(pool=st.lists(servers, max_size=6), preview=st.lists(servers, max_size=2))
def test_what_is_parsed_back_is_the_model(
    tmp_path_factory: pytest.TempPathFactory, pool: list[Server], preview: list[Server]
) -> None:
    route = Route(generation=9, servers=tuple(pool), preview=tuple(preview))
    found = parse(text(route), tmp_path_factory.mktemp("nginx"))
    expected = [
        [s.address, f"weight={s.weight}", "max_fails=1", "fail_timeout=2s", *(["backup"] if s.backup else [])]
        for s in pool
    ]
    assert found["api"] == (expected or [["127.0.0.1:1", "down"]])
    assert ("api_preview" in found) == bool(preview)


def test_the_header_tells_a_whole_file_from_an_edited_one() -> None:
    rendered = text(Route(generation=17, servers=(server(),)))
    header = read_header(rendered)
    assert header is not None
    assert (header.service, header.generation, header.token, header.intact) == ("api", 17, 3, True)
    edited = read_header(rendered.replace("weight=1", "weight=2"))
    assert edited is not None
    assert not edited.intact
    assert read_header("server {}") is None
    assert read_header("") is None


@pytest.mark.parametrize(
    "change",
    [
        {"address": "x;}server{listen 1;:80"},
        {"address": "10.0.0.1"},
        {"address": "10.0.0.1:0"},
        {"address": "10.0.0.1:99999"},
        {"address": "10.0.0.1:١٢"},
        {"address": "host.example:80"},
        {"weight": 0},
        {"weight": -1},
        {"weight": 1.5},
        {"release": "api-1\n}"},
        {"instance": "a b"},
    ],
)
def test_what_could_say_anything_else_to_nginx_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(Fault):
        text(Route(generation=1, servers=(server(**change),)))


@pytest.mark.parametrize("name", ["", "../../etc", "api\n", "Api", "a_b", "-a", "a" * 41, "а"])
def test_a_service_name_is_a_dns_label(name: str) -> None:
    with pytest.raises(Fault):
        text(Route(), service=name)


def test_options_are_rendered() -> None:
    options = EdgeOptions(method="least_conn", server=ServerBlock(listen="127.0.0.1:80", read_timeout=1.5))
    rendered = text(Route(generation=1, servers=(server(),)), options=options)
    assert "least_conn;" in rendered
    assert "proxy_read_timeout 1500ms;" in rendered
    assert "include /x/snippets/proxy.conf;" in rendered


@given(pool=st.lists(servers, max_size=6), back=st.lists(servers, max_size=2))
def test_a_route_in_memory_says_what_the_model_says(pool: list[Server], back: list[Server]) -> None:
    route = Route(generation=9, servers=tuple(pool))
    lines = route_text(OnDisk(route=route, back=tuple(back)), EdgeOptions(), token=3).split("\n")
    assert lines[:2] == ["generation 9", "token 3"]
    expected = [
        f"{name} {s.address.replace(':', ' ')} {s.weight} {s.release} {s.instance} {int(s.backup)} 1 2"
        for name, group in (("main", pool), ("back", back))
        for s in group
    ]
    assert lines[2:] == expected


@pytest.mark.parametrize("local", [None, LocalRollback(to="api-1", actor="ann", reason="")])
def test_the_first_version_of_the_balancer_understands_every_line_of_a_route(
    local: LocalRollback | None,
) -> None:
    """It serves what lies in nginx' memory after a downgrade, and fails at any other line."""
    understood = r"(generation|token|share) [0-9]+|[a-z]+ \S+ [0-9]+ [0-9]+ \S+ \S+ [01] [0-9]+ [0-9]+"
    disk = OnDisk(route=Route(generation=9, servers=(server(),)), back=(server(),), local=local)
    lines = route_text(disk, EdgeOptions(backup=("127.0.0.1:9",)), token=3).split("\n")
    assert [line for line in lines if not re.fullmatch(understood, line)] == []


def test_a_file_for_memory_differs_in_nothing_but_its_route_while_its_shape_is_the_same() -> None:
    def dynamic(route: Route, options: EdgeOptions) -> str:
        return render(
            "api", OnDisk(route=route), options, token=3, listen="127.0.0.1:1", folder="/x", secret="s3cret"
        )

    def shape(rendered: str) -> str:
        return rendered.partition('.tell("api"')[2].partition(', "\\n"), "')[2].partition('"')[0]

    one = dynamic(Route(generation=1, servers=(server(),)), EdgeOptions())
    two = dynamic(Route(generation=2, servers=(server(weight=7), server(instance="b"))), EdgeOptions())
    other = dynamic(Route(generation=2, servers=(server(),)), EdgeOptions(keepalive=8))
    assert shape(one) == shape(two) != shape(other)
    assert len(shape(one)) == 16
    bare = [re.sub(r"table\.concat\(.*?\)", "", t.split("\n", 3)[3]) for t in (one, two)]
    assert bare[0] == bare[1]


def test_what_could_say_anything_else_to_the_balancer_is_refused() -> None:
    for change in ({"release": "api-1\nmain 1.2.3.4"}, {"instance": "a]==]"}, {"address": "1.2.3.4"}):
        with pytest.raises(Fault):
            route_text(OnDisk(route=Route(generation=1, servers=(server(**change),))), EdgeOptions(), token=1)
    with pytest.raises(Fault):
        location_snippet("../api", "/x", EdgeOptions(), dynamic=True)
