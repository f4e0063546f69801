"""A file of one service takes nothing of another, whatever it says and in whatever order files are read."""

import re
import tempfile
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.daemon.config import Config, load
from orchestrator.daemon.kept import KeptFiles
from orchestrator.rollout.model import Route
from orchestrator.rollout.observation import OnDisk
from orchestrator.traffic.render import render
from tests.mistakes.place import Place


def said(name: str, server: dict[str, Any] | None = None, **more: Any) -> str:
    """A service's file."""
    nginx = {"nginx": {"server": server}} if server is not None else {}
    return yaml.safe_dump(
        {"service": name, "images": [f"r/{name}"], "container": {"port": 8080}, **nginx, **more}
    )


class Daemon:
    """What a daemon takes of the files, as it reads them again and is started again."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.kept = KeptFiles(place.folder / "state")
        self.config = self._take(load(place.config))

    def _take(self, config: Config) -> Config:
        self.kept.keep(config)
        return config

    def file(self, name: str, text: str | None) -> None:
        """Write one in the folder of services, or remove it."""
        path = self.place.folder / "services" / name
        path.unlink(missing_ok=True) if text is None else path.write_text(text)

    def reload(self) -> Config:
        """Read the files again."""
        self.config = self._take(load(self.place.config, self.config))
        return self.config

    def restart(self) -> Config:
        """Start again with what is kept."""
        self.config = self._take(load(self.place.config, self.kept.before(load(self.place.config))))
        return self.config

    def serve(self, name: str) -> None:
        """Let nginx have what a service is driven by."""
        options, folder = self.config.driven[name].edge, str(self.place.folder / "edge")
        text = render(name, OnDisk(route=Route()), options, token=1, listen="127.0.0.1:18100", folder=folder)
        (self.place.folder / "edge" / f"{name}.conf").write_text(text)

    def again(self, how: str) -> Config:
        """By either way."""
        return self.reload() if how == "reload" else self.restart()


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    place = Place(tmp_path)
    place.write("services/api.yaml", said("api", {"listen": "8081"}))
    place.write("services/web.yaml", said("web", {"listen": "8082"}))
    return Daemon(place)


WAYS = pytest.mark.parametrize("how", ["reload", "restart"])


@WAYS
def test_a_known_file_that_names_anothers_service_is_the_wrong_file_of_its_own(
    daemon: Daemon, how: str
) -> None:
    before = daemon.config.driven
    daemon.file("api.yaml", said("web", {"listen": "8083"}))
    config = daemon.again(how)
    assert config.driven == before
    assert (
        f"service: 'web' is that of {daemon.place.folder}/services/web.yaml; this is the file of 'api'"
        in config.wrong("api")
    )
    assert config.wrong("web") == ""
    assert "this is the file of 'api'" in daemon.place.check()
    assert daemon.again(how).driven == before


@WAYS
def test_a_new_file_that_names_anothers_service_is_refused_wherever_it_sorts(
    daemon: Daemon, how: str
) -> None:
    before = daemon.config.driven
    daemon.file("admin.yaml", said("web", {"listen": "8083"}))
    config = daemon.again(how)
    assert config.driven == before
    assert [p.file.name for p in config.problems] == ["admin.yaml"]
    assert "one of them must go" in str(config.problems[0])


@WAYS
def test_who_held_a_service_goes_on_with_it_though_its_file_is_called_otherwise(
    daemon: Daemon, how: str
) -> None:
    daemon.file("web.yaml", None)
    daemon.file("zoo.yaml", said("web", {"listen": "8082"}))
    before = daemon.again(how).driven
    daemon.file("web.yaml", said("web", {"listen": "8083"}))
    config = daemon.again(how)
    assert config.driven == before
    assert [p.file.name for p in config.problems] == ["web.yaml"]
    assert "web.yaml: service: 'web' is that of" in daemon.place.check()


def test_a_file_that_names_its_former_service_again_has_it_before_any_new_one(daemon: Daemon) -> None:
    daemon.file("web.yaml", None)
    daemon.file("zoo.yaml", said("web", {"listen": "8082"}))
    daemon.reload()
    daemon.file("zoo.yaml", said("shop", {"listen": "8085"}))
    daemon.reload()
    daemon.file("zoo.yaml", said("web", {"listen": "8082"}))
    daemon.file("web.yaml", said("web", {"listen": "8083"}))
    assert daemon.reload().files["web"].name == "zoo.yaml"


def test_a_service_that_nobody_held_is_that_of_the_file_that_is_called_like_it(daemon: Daemon) -> None:
    daemon.file("admin.yaml", said("shop", {"listen": "8083"}))
    daemon.file("shop.yaml", said("shop", {"listen": "8084"}))
    assert daemon.reload().files["shop"].name == "shop.yaml"


@WAYS
def test_two_files_that_are_swapped_are_both_wrong(daemon: Daemon, how: str) -> None:
    before = daemon.config.driven
    daemon.file("web.yaml", said("api", {"listen": "8081"}))
    daemon.file("api.yaml", said("web", {"listen": "8082"}))
    config = daemon.again(how)
    assert config.driven == before
    assert config.wrong("api")
    assert config.wrong("web")


@WAYS
def test_a_known_file_does_not_take_a_service_over_whose_file_is_gone(daemon: Daemon, how: str) -> None:
    before = daemon.config.driven
    daemon.file("web.yaml", None)
    daemon.file("api.yaml", said("web", {"listen": "8082"}))
    config = daemon.again(how)
    assert config.driven == before
    assert list(config.gone) == ["web"]
    daemon.file("web.yaml", said("web", {"listen": "8082"}))
    daemon.file("api.yaml", said("api", {"listen": "8081"}))
    assert daemon.again(how).problems == ()


@WAYS
@pytest.mark.parametrize("new", ["admin", "zoo"])
def test_a_renamed_service_takes_nothing_of_the_old_one_and_is_told_the_way(
    daemon: Daemon, new: str, how: str
) -> None:
    daemon.file("web.yaml", None)
    daemon.file(f"{new}.yaml", said(new, {"listen": "8082"}))
    config = daemon.again(how)
    assert sorted(config.driven) == ["api", "web"]
    told = config.unusable[new]
    assert "listen 8082, server_name _ is that of web; the file of web is gone" in told
    assert (
        "by another name, which is a new service: orchestrator remove web, then orchestrator reload" in told
    )
    assert told in daemon.place.check()
    daemon.config = replace(daemon.config, gone={})  # as after a removal
    daemon.kept.forget("web")
    assert new in daemon.again(how).services


def test_a_service_renamed_in_its_file_is_told_and_renamed_back(daemon: Daemon) -> None:
    daemon.file("web.yaml", said("shop", {"listen": "8085"}))
    config = daemon.reload()
    assert sorted(config.driven) == ["api", "shop", "web"]
    assert config.wrong("shop") == ""
    assert "web.yaml says `service: shop`, which is a new service, not web by another name" in str(
        config.problems[0]
    )
    daemon.file("web.yaml", said("web", {"listen": "8082"}))
    assert "web" in daemon.reload().services


@WAYS
def test_a_wrong_file_that_comes_back_ends_no_driving(daemon: Daemon, how: str) -> None:
    before = daemon.config.driven
    daemon.file("web.yaml", None)
    daemon.again(how)
    daemon.file("web.yaml", "service: web\noops: 1")
    assert daemon.again(how).driven == before


TLS = {"certificate": "/c.pem", "key": "/k.pem"}


@pytest.mark.parametrize(
    ("has", "wants", "words"),
    [
        ({"listen": "8080"}, {"listen": "0.0.0.0:8080"}, "is that of api"),
        ({"listen": "*:8080"}, {"listen": "8080"}, "is that of api"),
        ({"listen": "8080"}, {"listen": "127.0.0.1:8080"}, "is that of api"),
        ({"listen": "10.0.0.1:8080"}, {"listen": "*:8080"}, "is that of api"),
        ({"listen": "127.0.0.1:8080"}, {"listen": "localhost:8080"}, "is that of api"),
        ({"listen": "[::1]:8080"}, {"listen": "LOCALHOST:8080"}, "is that of api"),
        ({"listen": "127.0.0.1:8080"}, {"listen": "127.000.0.1:08080"}, "is that of api"),
        ({"listen": "[::1]:8080"}, {"listen": "[0:0:0:0:0:0:0:1]:8080"}, "is that of api"),
        ({"listen": "[::]:8080"}, {"listen": "[fd00::1]:8080"}, "is that of api"),
        ({"listen": "8000-8090"}, {"listen": "8080"}, "is that of api"),
        ({"listen": "10.0.0.1"}, {"listen": "10.0.0.1:80"}, "is that of api"),
        ({"listen": "host.test:8080"}, {"listen": "10.0.0.1:8080"}, "is that of api"),
        (
            {"listen": "8080", "server_name": "a.test b.test"},
            {"listen": "8080", "server_name": "b.test"},
            "is that",
        ),
        (
            {"listen": "8080", "server_name": "b.test"},
            {"listen": "8080", "server_name": "B.TEST"},
            "is that of",
        ),
        (
            {"listen": "8080", "server_name": ".b.test"},
            {"listen": "8080", "server_name": "*.b.test"},
            "is that",
        ),
        ({"listen": "8080"}, {"listen": "127.0.0.1:8080", "server_name": "b.test"}, "is that of api"),
        ({"listen": "443", "tls": {**TLS, "redirect_from": "80"}}, {"listen": "*:80"}, "is that of api"),
        (
            {"listen": "80"},
            {"listen": "443", "tls": {**TLS, "redirect_from": "*:80"}},
            "nginx/server: tls/redirect_from *:80, server_name _ is that of api",
        ),
        (
            {"listen": "8080", "server_name": "a.test"},
            {"listen": "8080", "server_name": "b.test", "tls": TLS},
            "speaks another protocol (TLS, proxy_protocol) than the address of api",
        ),
        (
            {"listen": "8080 default_server", "server_name": "a.test"},
            {"listen": "*:8080 default_server", "server_name": "b.test"},
            "is default_server, as that of api",
        ),
        (
            {"listen": "8080", "server_name": "a.test"},
            {"listen": "8080"},
            "the one with server_name _ has no other names there: write `default_server`",
        ),
    ],
)
def test_what_is_one_place_to_nginx_is_one_place(
    has: dict[str, Any], wants: dict[str, Any], words: str, tmp_path: Path
) -> None:
    place = Place(tmp_path)
    place.write("services/api.yaml", said("api", has))
    place.write("services/web.yaml", said("web", wants))
    config = load(place.config)
    assert list(config.services) == ["api"]
    assert words in config.unusable["web"]
    place.remove("services/web.yaml")
    before = load(place.config)
    place.write("services/aaa.yaml", said("aaa", {**wants, "server_name": wants.get("server_name", "_")}
                                          if "tls" not in wants else wants))  # fmt: skip
    if "has no other names" not in words:  # the first file of an address has these
        assert list(load(place.config, before).services) == ["api"]


@pytest.mark.parametrize(
    ("has", "wants"),
    [
        ({"listen": "8080"}, {"listen": "8081"}),
        ({"listen": "8080"}, {"listen": "[::]:8080"}),
        ({"listen": "10.0.0.1:8080"}, {"listen": "10.0.0.2:8080"}),
        ({"listen": "8080"}, {"listen": "8080", "server_name": "b.test"}),
        ({"listen": "8080", "server_name": "a.test"}, {"listen": "8080 default_server"}),
        ({"listen": "8080", "server_name": "a.test"}, {"listen": "127.0.0.1:8080", "server_name": "b.test"}),
        ({"listen": "443", "server_name": "a.test", "tls": {**TLS, "redirect_from": "80"}},
         {"listen": "443", "server_name": "b.test", "tls": {**TLS, "redirect_from": "80"}}),
    ],
)  # fmt: skip
def test_what_nginx_tells_apart_is_let_in(has: dict[str, Any], wants: dict[str, Any], tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write("services/api.yaml", said("api", has))
    place.write("services/web.yaml", said("web", wants))
    assert load(place.config).problems == ()


def test_a_newcomer_does_not_become_the_first_of_an_address_whose_other_names_are_anothers(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path)
    place.write("services/api.yaml", said("api", {"listen": "8080"}))
    before = load(place.config)
    place.write("services/aaa.yaml", said("aaa", {"listen": "8080", "server_name": "a.test"}))
    config = load(place.config, before)
    assert list(config.services) == ["api"]
    assert "shares its address with that of api" in config.unusable["aaa"]
    place.write("services/api.yaml", said("api", {"listen": "8080 default_server"}))
    assert load(place.config, before).problems == ()


def test_the_address_at_which_the_daemon_asks_nginx_is_no_services(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.service("nginx: {server: {listen: '127.0.0.1:18100', server_name: a.test}}")
    assert "nginx/server/listen: is nginx/listen of" in load(place.config).unusable["api"]


@WAYS
@pytest.mark.parametrize("owner", ["api", "zoo"])
def test_a_block_that_others_join_stays_until_they_do_not(daemon: Daemon, owner: str, how: str) -> None:
    daemon.file("zoo.yaml", said("zoo", {"listen": "8083"}))
    daemon.file("web.yaml", said("web", {"join": owner, "path": "/web/"}))
    before = daemon.again(how).driven
    for server in (None, {"join": "zoo" if owner == "api" else "api", "path": "/x/"}):
        daemon.file(f"{owner}.yaml", said(owner, server))
        config = daemon.again(how)
        assert config.driven == before
        assert f"web joins the block of {owner}" in config.wrong(owner)
        assert config.wrong("web") == ""
    daemon.file(f"{owner}.yaml", None)
    config = daemon.again(how)
    assert config.driven == before
    assert config.wrong("web") == ""


@WAYS
def test_a_place_is_free_when_nginx_no_longer_serves_it_for_another(daemon: Daemon, how: str) -> None:
    daemon.serve("web")
    daemon.file("web.yaml", said("web", {"listen": "8090"}))
    daemon.file("zoo.yaml", said("zoo", {"listen": "8082"}))
    config = daemon.again(how)
    assert config.wrong("web") == ""
    assert "is that of web, until the next change of its route" in config.unusable["zoo"]
    daemon.serve("web")
    assert daemon.again(how).problems == ()


def test_a_listen_that_nginx_does_not_have_yet_is_told_with_what_applies_it(daemon: Daemon) -> None:
    daemon.serve("web")
    assert "nginx listen" not in daemon.place.doctor()
    daemon.file("web.yaml", said("web", {"listen": "8090"}))
    daemon.reload()
    assert "nginx listens for web as" in daemon.place.doctor()
    assert "orchestrator restart web" in daemon.place.doctor()
    daemon.serve("web")
    assert "nginx listen" not in daemon.place.doctor()


def test_a_certificate_that_is_gone_is_told_by_its_service(daemon: Daemon) -> None:
    daemon.file(
        "web.yaml", said("web", {"listen": "8443", "tls": {"certificate": "/no/c.pem", "key": "/no/k"}})
    )
    assert "services/web file: /no/c.pem is not there" in daemon.place.doctor()


def test_a_place_to_which_nginx_may_be_put_back_is_not_free(daemon: Daemon) -> None:
    daemon.serve("web")
    edge = daemon.place.folder / "edge"
    (edge / "web.good").write_text((edge / "web.conf").read_text())
    daemon.file("web.yaml", said("web", {"listen": "8090"}))
    daemon.reload()
    daemon.serve("web")  # and nginx has not confirmed it
    daemon.file("zoo.yaml", said("zoo", {"listen": "8082"}))
    assert "is that of web, until the next change of its route" in daemon.reload().unusable["zoo"]


@WAYS
def test_what_an_older_daemon_let_in_is_driven_on_and_told(daemon: Daemon, how: str) -> None:
    other = load(daemon.place.config).services["web"]
    server = other.nginx.server
    assert server is not None
    clash = {"service": "web", "images": ["r/web"], "container": {"port": 8080}}
    text = yaml.safe_dump({**clash, "nginx": {"server": {"listen": "*:8081"}}})
    daemon.file("web.yaml", text)
    daemon.kept.path("web").write_text(text)
    old = daemon.kept.services()
    daemon.config = replace(daemon.config, services=old)
    config = daemon.again(how)
    assert config.driven == old
    assert "is that of api" in config.wrong("web")
    more = yaml.safe_dump({**clash, "images": ["r/more"], "nginx": {"server": {"listen": "*:8081"}}})
    daemon.file("web.yaml", more)
    assert daemon.again(how).services["web"].images == ["r/more"]  # it is no worse than before


NAMES = ("a", "b", "c")
PLACES = {
    None: (None,),
    1: ("8081", "*:8081", "0.0.0.0:8081", "127.0.0.1:8081", "localhost:8081"),
    2: ("8082", "127.0.0.1:8082", "0.0.0.0:8082"),
}
CLASS = {listen: number for number, found in PLACES.items() for listen in found}
SERVERS = st.sampled_from([None if listen is None else {"listen": listen} for listen in CLASS])
WRONG = st.sampled_from(["\t", "service: a\noops: 1", "service: b\n[", "", "service: c"])
TEXTS = st.builds(said, st.sampled_from(NAMES), SERVERS, tick=st.none()).map(
    lambda text: text.replace("tick: null\n", "")
)


class Files(RuleBasedStateMachine):
    """Any files in any order, read again by a daemon that runs or starts."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="takeover-")
        place = Place(Path(self.folder.name))
        place.remove("services/api.yaml")
        self.daemon = Daemon(place)

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(name=st.sampled_from(NAMES), text=TEXTS | TEXTS | WRONG | st.none())
    def write(self, name: str, text: str | None) -> None:
        self.daemon.file(f"{name}.yaml", text)

    @rule(one=st.sampled_from(NAMES), other=st.sampled_from(NAMES))
    def rename(self, one: str, other: str) -> None:
        path = self.daemon.place.folder / "services" / f"{one}.yaml"
        if path.exists():
            path.rename(path.with_name(f"{other}.yaml"))

    @rule(how=st.sampled_from(["reload", "restart"]))
    def read(self, how: str) -> None:
        before = self.daemon.config
        after = self.daemon.again(how)
        assert before.driven.keys() <= after.driven.keys()
        for name, was in before.driven.items():
            if after.driven[name] == was:
                continue
            own, by = before.held[name], after.files[name]
            others = {before.held[other] for other in before.driven if other != name}
            left = not own.exists() or not re.search(rf"^service: {name}$", own.read_text(), re.MULTILINE)
            assert by == own or (left and by not in others)

    @precondition(lambda self: self.daemon.config.driven)
    @rule(data=st.data())
    def route(self, data: st.DataObject) -> None:
        self.daemon.serve(data.draw(st.sampled_from(sorted(self.daemon.config.driven))))

    @invariant()
    def no_two_have_one_place(self) -> None:
        found = [s.nginx.server.listen for s in self.daemon.config.driven.values() if s.nginx.server]
        assert all(CLASS[one] != CLASS[other] for one, other in combinations(found, 2))
        edge = self.daemon.place.folder / "edge"
        lines = [line.split() for path in edge.glob("*.conf") for line in path.read_text().split(";\n")]
        has = [w[1] for w in lines if w[:1] == ["listen"] and w[1] in CLASS]
        assert all(CLASS[one] != CLASS[other] for one, other in combinations(has, 2))


Files.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestFiles = Files.TestCase
