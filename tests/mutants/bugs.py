"""The bugs: what somebody could get wrong, and which tests should notice."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bug:
    """Replace `right` by `wrong` in a file of orchestrator/; then one of `tests` must fail."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str


UNIT = "tests/unit"
DOOR = "tests/door/"
ENGINE = "tests/unit/test_engine.py"
STORE = "tests/contract/test_store.py"
TRAFFIC = "tests/contract/test_traffic.py -k 'not container'"
SWITCH = "tests/contract/test_switch.py"
KEPT = "tests/contract/test_kept.py"
PROCESS = "tests/contract/test_process.py"
AUDIENCE = "tests/contract/test_audience.py"
PLACES = "tests/contract/test_places.py"
MEMORY = "tests/contract/test_memory.py -k 'not share'"
RUNTIME = "tests/contract/test_runtime.py"
SIMULATION = "tests/simulation -k one_effect"
REVERT = "tests/simulation -k 'one_effect and revert'"
BULKHEADS = "tests/unit/test_bulkheads.py"

BUGS = (
    Bug(
        "a command is forgotten before it is committed",
        "engine/conductor.py",
        "            command = self._inbox[0]\n"
        "            state, events = self._handle(command)\n"
        "            await self._commit(state, events, acks=(command.request,))\n"
        "            self._inbox.popleft()\n        return told\n",
        "            command = self._inbox.popleft()\n"
        "            state, events = self._handle(command)\n"
        "            await self._commit(state, events, acks=(command.request,))\n        return told\n",
        ENGINE,
    ),
    Bug(
        "a request is acknowledged when it is read",
        "store/scripts.py",
        "while ARGV[at] do\n",
        "while false do\n",
        STORE,
    ),
    Bug(
        "the state is written without looking at the version",
        "store/scripts.py",
        "if version > tonumber(ARGV[2]) then return",
        "if false then return",
        STORE,
    ),
    Bug(
        "a commit needs no lease",
        "store/scripts.py",
        "if holder ~= ARGV[1] then return redis.error_reply('STALE lease') end",
        "",
        STORE,
    ),
    Bug(
        "the event stream is trimmed by length",
        "store/scripts.py",
        "redis.call('XADD', KEYS[3], '*', 'kind', ARGV[at], 'service', ARGV[4]",
        "redis.call('XADD', KEYS[3], 'MAXLEN', 50, '*', 'kind', ARGV[at], 'service', ARGV[4]",
        STORE,
    ),
    Bug(
        "a refusal whose reply was lost is told twice",
        "store/scripts.py",
        "if #redis.call('XPENDING', KEYS[4], ARGV[2], ARGV[3], ARGV[3], 1) == 0 then return 0 end",
        "",
        STORE,
    ),
    Bug(
        "a lease is taken again although somebody has driven since",
        "store/scripts.py",
        "if tonumber(redis.call('GET', KEYS[2]) or '0') > tonumber(ARGV[1]) then return 0 end",
        "",
        STORE,
    ),
    Bug(
        "a lease stays fresh for all its time",
        "store/lease.py",
        "< self._ttl / 2",
        "< self._ttl",
        STORE,
    ),
    Bug(
        "a key is good for any request",
        "store/scripts.py",
        "if known[1] and known[1] ~= ARGV[1] then return {{'conflict', known[2]}} end",
        "",
        STORE,
    ),
    Bug(
        "the edge refuses no older token",
        "traffic/edge.py",
        "if header.token <= token and not ahead:",
        "if not ahead:",
        TRAFFIC,
    ),
    Bug(
        "the edge serves an older generation",
        "traffic/edge.py",
        "if header.token <= token and not ahead:",
        "if header.token <= token:",
        TRAFFIC,
    ),
    Bug(
        "a rollback on the host is overwritten",
        "traffic/edge.py",
        "ahead = header.generation > plan.route.generation - (1 if local else 0)",
        "ahead = header.generation > plan.route.generation",
        TRAFFIC,
    ),
    Bug(
        "a reload that returned is believed",
        "traffic/edge.py",
        "                await self._reloader.confirm(service, change.disk.route.generation, before)\n",
        "                pass\n",
        TRAFFIC,
    ),
    Bug(
        "a rollback waits for its reload",
        "traffic/edge.py",
        "        await self._take_back_at_once(plan, token)\n",
        "",
        SWITCH,
    ),
    Bug(
        "a switch that is left over holds the next release back",
        "traffic/edge.py",
        "            self._switches.put_away(plan.service)\n            return False\n",
        "            return True\n",
        SWITCH,
    ),
    Bug(
        "a step goes on over a switch that a person has turned",
        "traffic/edge.py",
        "        if to == served:\n",
        "        if True:\n",
        SWITCH,
    ),
    Bug(
        "a switch is put away before nginx serves what makes it needless",
        "traffic/edge.py",
        "        if on and drained and served and needless",
        "        if on and drained and needless",
        REVERT,
    ),
    Bug(
        "a change that fails leaves the fallback of the new plan",
        "traffic/edge.py",
        "_put_back(path.with_suffix(FALLBACK), beside, bool(secret))",
        "None",
        SWITCH,
    ),
    Bug(
        "a first file that was never confirmed is put back after a crash",
        "traffic/edge.py",
        "            return old\n        return good\n",
        "            return old\n        return good or old\n",
        "tests/simulation -k one_effect",
    ),
    Bug(
        "a bug in one service ends the daemon",
        "engine/conductor.py",
        '                except Exception as error:\n                    log.exception("turn_failed"',
        '                except ZeroDivisionError as error:\n                    log.exception("turn_failed"',
        BULKHEADS,
    ),
    Bug(
        "a look that meets a bug is one for nobody",
        "engine/measure.py",
        "            if len(queries) > 1:",
        "            if len(queries) > 1000:",
        "tests/unit/test_measure.py",
    ),
    Bug(
        "what a job has done is done again until it is seen",
        "engine/tasks.py",
        "            self._not_before[name] = asyncio.get_running_loop().time() + self._first\n",
        "",
        BULKHEADS,
    ),
    Bug(
        "connections are not closed before a reload",
        "traffic/reload.py",
        "                await to_the_end(self._switches.close_connections)\n",
        "",
        SWITCH,
    ),
    Bug(
        "a backup that leaves makes a reload hasty",
        "traffic/edge.py",
        "if s.instance not in stay and not s.backup]",
        "if s.instance not in stay]",
        KEPT,
    ),
    Bug(
        "a reload that was never asked for is taken back by another",
        "traffic/edge.py",
        "if tested and self._reloader.asked:",
        "if tested:",
        KEPT,
    ),
    Bug(
        "whoever has the number in nginx's pid file is signalled",
        "traffic/process.py",
        "        if MASTER.match(title(pid)):\n            return\n",
        "        return\n",
        PROCESS,
    ),
    Bug(
        "workers of a master from before an upgrade are not seen",
        "traffic/process.py",
        "            first = older\n",
        "            break\n",
        PROCESS,
    ),
    Bug(
        "a try to bind that may yet succeed is a refusal",
        "traffic/error_log.py",
        " and not words.endswith(TRIES_AGAIN)",
        "",
        PROCESS,
    ),
    Bug(
        "connections stay closed after a reload",
        "traffic/reload.py",
        "            self._switches.keep_connections()\n",
        "            pass\n",
        SWITCH,
    ),
    Bug(
        "workers may not look for the switch",
        "traffic/switch.py",
        "                    folder.chmod(mode | PASS)\n",
        "                    pass\n",
        SWITCH,
    ),
    Bug(
        "the switch that a person turned is not followed",
        "engine/converge.py",
        "if edge.switched_to and edge.local is None and active != {edge.switched_to}:",
        "if False:",
        ENGINE,
    ),
    Bug(
        "nginx takes an older route into its memory",
        "traffic/balancer.lua",
        "if route.token < known.token or route.generation < known.generation then",
        "if false then",
        MEMORY,
    ),
    Bug(
        "nginx takes a route from anybody",
        "traffic/balancer.lua",
        "or ngx.var.http_x_secret ~= secret then",
        "then",
        MEMORY,
    ),
    Bug(
        "a restarted nginx has forgotten the weights",
        "traffic/edge.py",
        "            write(change.path, text, private=True)\n            return text\n",
        "            return text\n",
        MEMORY,
    ),
    Bug(
        "a server in memory is stopped while it has requests",
        "traffic/edge.py",
        "        drained = drained and not told.draining\n",
        "",
        MEMORY,
    ),
    Bug(
        "a retry asks the release that has failed",
        "traffic/balancer.lua",
        "tried[address], tried[last.release or address] = true, true",
        "local _ = tried",
        MEMORY,
    ),
    Bug(
        "what was never confirmed is put back after a crash",
        "traffic/edge.py",
        "            return old\n        return good\n",
        "            return old\n        return old\n",
        TRAFFIC,
    ),
    Bug(
        "the fallback is not written first",
        "traffic/edge.py",
        "        await self._keep_fallback(plan, token, secret)\n",
        "",
        TRAFFIC,
    ),
    Bug(
        "the Engine refuses no older token",
        "runtime/fence.py",
        "if highest > token:",
        "if False:",
        RUNTIME,
    ),
    Bug(
        "one good probe is enough",
        "runtime/probe.py",
        "if streak.good >= probe.successes:",
        "if streak.good:",
        f"{RUNTIME} tests/unit",
    ),
    Bug(
        "NaN passes a gate",
        "rollout/judge.py",
        "return value if value is not None and math.isfinite(value) else None",
        "return value",
        UNIT,
    ),
    Bug(
        "a stale sample passes a gate",
        "rollout/counts.py",
        "if not now - sample.at <= max_age:",
        "if False:",
        UNIT,
    ),
    Bug(
        "a counter that was reset counts backwards",
        "rollout/counts.py",
        "value if name in fell else value - was.get(name, 0.0)",
        "value - was.get(name, 0.0)",
        UNIT,
    ),
    Bug(
        "a counter that was not seen is zero",
        "rollout/counts.py",
        "unknown = unasked or part in older.unseen or part in newer.unseen or",
        "unknown = unasked or",
        UNIT,
    ),
    Bug(
        "Prometheus that is away is the candidate's silence",
        "rollout/gates.py",
        "    if last is None or last.error:\n        return rollout.silent\n",
        "    if last is None:\n        return rollout.silent\n",
        UNIT,
    ),
    Bug(
        "time in which nobody looked counts",
        "rollout/decide.py",
        "    overlook(turn, seen.unwatched)\n",
        "    overlook(turn, 0.0)\n",
        UNIT,
    ),
    Bug(
        "time in which no daemon ran is not known",
        "engine/conductor.py",
        "return max(now - memory.loaded_at, 0.0) if self._version else 0.0",
        "return 0.0",
        ENGINE,
    ),
    Bug(
        "evidence is forgotten at each look while the store is away",
        "engine/conductor.py",
        "watch(self._memory.watched or self._state, seen",
        "watch(self._state, seen",
        ENGINE,
    ),
    Bug(
        "a series counts twice while its target changes its track",
        "analysis/query.py",
        'return f"max without (track) ({selector})"',
        "return selector",
        "tests/integration/test_prometheus.py -k born",
    ),
    Bug(
        "one scrape may decide",
        "rollout/evidence.py",
        "capital[i] * math.exp(min(factor, most))",
        "capital[i] * math.exp(min(factor, 99.0))",
        UNIT,
    ),
    Bug(
        "the margin is not taken off a bet",
        "rollout/evidence.py",
        " - b * margin * n_c",
        "",
        UNIT,
    ),
    Bug(
        "evidence of safety is kept over a step",
        "rollout/evidence.py",
        "safe=0.0, unsafe=1.0, step=NO_COUNTS",
        "step=NO_COUNTS",
        UNIT,
    ),
    Bug(
        "a step is left while the candidate is suspect",
        "rollout/evidence.py",
        "if total >= certainty.suspicion:",
        "if False:",
        UNIT,
    ),
    Bug(
        "a scrape is counted each time that it is read",
        "rollout/gates.py",
        "elif all(last.samples[n].later_than(base.samples[n]) for n in (*candidate, *stable)):",
        "elif True:",
        UNIT,
    ),
    Bug(
        "the warm-up is judged",
        "rollout/gates.py",
        "if rule.name not in evidences or cold:",
        "if rule.name not in evidences:",
        UNIT,
    ),
    Bug(
        "a gate on trial decides",
        "rollout/gates.py",
        "if v.result is Result.FAIL and not v.dry_run), None)",
        "if v.result is Result.FAIL), None)",
        UNIT,
    ),
    Bug(
        "stable that can't be read rolls back",
        "rollout/gates.py",
        "result = Result.NO_DATA if missing else Result.INCONCLUSIVE",
        "result = Result.NO_DATA",
        UNIT,
    ),
    Bug(
        "a candidate without requests is waited for",
        "rollout/compare.py",
        "if missed >= policy.certainty.no_traffic:",
        "if False:",
        UNIT,
    ),
    Bug(
        "a step passes with gates unmet",
        "rollout/decide.py",
        "if held >= step.hold and not reason:",
        "if held >= step.hold:",
        UNIT,
    ),
    Bug(
        "a hold counts from the start of the rollout",
        "rollout/decide.py",
        "held = now - (rollout.held_since if rollout.held_since is not None else now)",
        "held = now - rollout.began_at",
        UNIT,
    ),
    Bug(
        "a weight is taken for served before nginx shows it",
        "rollout/decide.py",
        "    if state.confirmed == state.route.generation and _shifted(state, rollout, step.weight):",
        "    if _shifted(state, rollout, step.weight):",
        UNIT,
    ),
    Bug(
        "a revert that takes the traffic is turned round",
        "rollout/turn.py",
        "        if rollout.phase is Phase.ROLLING_BACK or rollout.one_way:",
        "        if rollout.phase is Phase.ROLLING_BACK:",
        UNIT,
    ),
    Bug(
        "a revert waits for nginx only as long as a step does",
        "rollout/decide.py",
        "    if turn.rollout.one_way:\n        _revert(turn, seen)\n        return\n",
        "",
        "tests/unit/test_revert.py",
    ),
    Bug(
        "a rollback leads to the release that was left before",
        "rollout/model.py",
        "            stack = stack[: ids.index(release.id)] if release.id in ids else stack\n",
        "",
        "tests/unit/test_revert.py",
    ),
    Bug(
        "the fallback of a revert is the release that it leaves",
        "rollout/desired.py",
        "        target = rollout.release if rollout.one_way else state.stable",
        "        target = state.stable",
        "tests/unit/test_revert.py",
    ),
    Bug(
        "a rollout that was never served waits for nginx",
        "rollout/decide.py",
        "    if (confirmed and not named) or _never_served(rollout, seen):",
        "    if confirmed and not named:",
        "tests/unit/test_revert.py",
    ),
    Bug(
        "a rollout that may be served is given up",
        "rollout/decide.py",
        "    if rollout.exposed_since is not None or not edge.error",
        "    if not edge.error",
        "tests/unit/test_revert.py",
    ),
    Bug(
        "the drain is forgotten",
        "rollout/handover.py",
        "elif seen.edge.drained or turn.now - entry.confirmed_at >= deadline:",
        "elif True:",
        UNIT,
    ),
    Bug(
        "the drain does not wait for the confirmation",
        "rollout/handover.py",
        "if entry.generation is None or turn.state.confirmed < entry.generation:",
        "if entry.generation is None:",
        UNIT,
    ),
    Bug(
        "what nginx names may be stopped",
        "engine/converge.py",
        "if settled and name not in routed:",
        "if True:",
        ENGINE,
    ),
    Bug(
        "a dead instance keeps its traffic",
        "rollout/route.py",
        "    if not instance.running:\n        why",
        "    if False:\n        why",
        UNIT,
    ),
    Bug(
        "traffic is sent to nobody",
        "rollout/route.py",
        "if any(not pool for _, _, pool in pools):",
        "if False:",
        UNIT,
    ),
    Bug(
        "an instance that was replaced keeps its traffic",
        "rollout/route.py",
        "if instance.container != server.container or instance.started_at != server.started_at:",
        "if False:",
        UNIT,
    ),
    Bug(
        "a second delivery is a second release",
        "rollout/command.py",
        "if command.request in state.handled:",
        "if False:",
        UNIT,
    ),
    Bug(
        "the same key is a second release",
        "rollout/command.py",
        "    if receipt is not None:\n",
        "    if False:\n",
        UNIT,
    ),
    Bug(
        "a state that Redis has lost is not taken up",
        "rollout/decide.py",
        "    adopt(turn, seen)\n",
        "",
        UNIT,
    ),
    Bug(
        "commits that Redis has lost are believed",
        "engine/conductor.py",
        "if version >= self._version:",
        "if True:",
        ENGINE,
    ),
    Bug(
        "without Redis a dying candidate keeps its traffic",
        "engine/conductor.py",
        "                    await self._fail_static()\n",
        "",
        ENGINE,
    ),
    Bug(
        "the world is touched without a fresh lease",
        "engine/conductor.py",
        "if self._parts.may_act():",
        "if True:",
        ENGINE,
    ),
    Bug(
        "a superseded daemon goes on",
        "engine/tasks.py",
        "        except Stale:\n            raise\n        except Fault as error:\n"
        '            log.warning("task_failed", task=name, reason=str(error))\n            await',
        "        except Fault as error:\n"
        '            log.warning("task_failed", task=name, reason=str(error))\n            await',
        ENGINE,
    ),
    Bug(
        "a rollback on the host is undone",
        "rollout/notice.py",
        "    local = unanswered(state, seen)\n    if local is None:\n        return\n",
        "    local = None\n    if local is None:\n        return\n",
        UNIT,
    ),
    Bug(
        "effects go before their commit",
        "engine/conductor.py",
        "        state, events = decide(self._state, seen, self._parts.clock.now())\n"
        "        if state != self._state:\n",
        "        state, events = decide(self._state, seen, self._parts.clock.now())\n"
        "        self._converger.converge(desired(state, self._parts.clock.now()), state, seen)\n"
        "        if state != self._state:\n",
        SIMULATION,
    ),
    Bug(
        "the same users are first in every release",
        "traffic/audience.py",
        "Split(who.candidate[0].release, key,",
        'Split("salt", key,',
        AUDIENCE,
    ),
    Bug(
        "the same users are first in every release, by Lua",
        "traffic/balancer.lua",
        'ngx.md5_bin(candidate[1].release .. " " .. key)',
        "ngx.md5_bin(key)",
        AUDIENCE,
    ),
    Bug(
        "users are dealt anew at each step",
        "traffic/audience.py",
        "Split(who.candidate[0].release, key,",
        'Split(f"{who.share}", key,',
        AUDIENCE,
    ),
    Bug(
        "a version cookie outlives the rollback switch",
        "traffic/balancer.lua",
        """    if pool == "main" and route.pools.back and switched(switch) then
        servers = route.pools.back
    elseif pool == "main" and audience then
        own = named(route.pools, audience.forced) or stuck(route, audience.sticky)
    end""",
        """    if pool == "main" and audience then
        own = named(route.pools, audience.forced) or stuck(route, audience.sticky)
    end
    if pool == "main" and not own and route.pools.back and switched(switch) then
        servers = route.pools.back
    end""",
        AUDIENCE,
    ),
    Bug(
        "a cookie for any release names the next one",
        "traffic/audience.py",
        '(?:{name}|{servers[0].release})$"',
        '(?:{name}|{servers[0].release[:-1]}.*)$"',
        AUDIENCE,
    ),
    Bug(
        "the other release does not stand by",
        "traffic/audience.py",
        "yield name, (*own, *(replace(s, backup=True) for s in other))",
        "yield name, own",
        AUDIENCE,
    ),
    Bug(
        "requests that write are copied",
        "traffic/templates/service.conf",
        """    default "";
{%- if route.preview %}
    GET""",
        """    default {{ service }}_preview;
{%- if route.preview %}
    GET""",
        PLACES + " -k copies",
    ),
    Bug(
        "a location in another's block is left behind",
        "traffic/snippets.py",
        "            for path in left:\n                remove(path)\n",
        "            pass\n",
        PLACES + " -k share",
    ),
    Bug(
        "a signed request may come twice",
        "store/scripts.py",
        "local before = once and redis.call('GET', KEYS[3])",
        "local before = false",
        DOOR + "test_signed.py",
    ),
    Bug(
        "the path is not signed",
        "intake/signed.py",
        "request.method, request.raw_path, body)",
        "request.method, PATH, body)",
        DOOR + "test_signed.py",
    ),
    Bug(
        "the time of a signature is not looked at",
        "intake/signatures.py",
        "if not _SECONDS.fullmatch(timestamp) or abs(now - int(timestamp)) > SKEW:",
        "if not _SECONDS.fullmatch(timestamp):",
        DOOR + "test_signed.py",
    ),
    Bug(
        "an alert from before a rollout takes it back",
        "intake/alertmanager.py",
        "done or starts < rollout.began_at",
        "done",
        DOOR + "test_alertmanager.py",
    ),
    Bug(
        "a verb hits whatever rolls out",
        "rollout/command.py",
        "why = _misses(state, command) or _carry_out(turn, command)",
        "why = _carry_out(turn, command)",
        UNIT,
    ),
    Bug(
        "instances that are being stopped are taken for a rollback",
        "rollout/decide.py",
        "    if _leaving(turn.state, seen):\n        return\n",
        "",
        UNIT,
    ),
    Bug(
        "a role is not asked for",
        "intake/desk.py",
        "if not who.may(verb, service):",
        "if False:",
        DOOR + "test_slack.py",
    ),
    Bug(
        "a scope is not looked at where a release is shown",
        "intake/desk.py",
        "if not who.sees(service):",
        "if False:",
        DOOR + "test_api.py -k one_service",
    ),
    Bug(
        "an expired token works on",
        "store/tokens.py",
        "kept.token.expires_at <= now",
        "kept.token.expires_at <= 0",
        DOOR + "test_api.py -k token",
    ),
    Bug(
        "a session works without the header",
        "intake/door.py",
        'if token is not None and request.method not in ("GET", "HEAD") and BY_PAGE not in request.headers:',
        "if False:",
        DOOR + "test_pages.py -k another_site",
    ),
    Bug(
        "a rollback waits in the lane of all",
        "intake/door.py",
        "urgent = operation.verb in URGENT",
        "urgent = False",
        DOOR + "test_api.py",
    ),
    Bug(
        "a workspace is not looked at",
        "intake/slack.py",
        "who = workspace.users.get(user) if team == workspace.team else None",
        "who = workspace.users.get(user)",
        DOOR + "test_slack.py",
    ),
    Bug(
        "later answers go anywhere",
        "intake/slack.py",
        "if not url.startswith(workspace.hooks):",
        "if not url:",
        DOOR + "test_slack.py",
    ),
    Bug(
        "an alert that is repeated asks again",
        "intake/alertmanager.py",
        "done = rollout.phase is Phase.ROLLING_BACK or",
        "done = False or",
        DOOR + "test_alertmanager.py",
    ),
    Bug(
        "an old alert takes a new release back",
        "intake/alertmanager.py",
        "began is not None and starts >= began and not reverted",
        "began is not None and not reverted",
        DOOR + "test_alertmanager.py",
    ),
    Bug(
        "a message is noted before it is sent",
        "notify/postman.py",
        "                    await self._deliver(event)\n                    self._after = entry\n",
        "                    self._after = entry\n",
        DOOR + "test_notify.py",
    ),
    Bug(
        "a bug in a courtesy ends the daemon",
        "engine/tasks.py",
        "        except Exception:\n",
        "        except ValueError:\n",
        "tests/unit/test_tasks.py",
    ),
    Bug(
        "what is refused is asked again",
        "notify/postman.py",
        "not isinstance(error, Refused | Stale)",
        "not isinstance(error, Stale)",
        DOOR + "test_delivery.py -k 'refused'",
    ),
    Bug(
        "a stranger's text calls the channel",
        "notify/text.py",
        'return _MENTION.sub(lambda found: found[0] + "\\u200b", " ".join(text.split()))',
        'return " ".join(text.split())',
        DOOR + "test_notify.py",
    ),
    Bug(
        "a service's hooks wait for those of another one",
        "hooks/afterwards.py",
        "last.get(event.service)",
        "next(reversed(under_way.values()), None)",
        DOOR + "test_afterwards.py",
    ),
    Bug(
        "a hook that was told is told again",
        "hooks/afterwards.py",
        "return hooks[names.index(name) + 1 :]",
        "return hooks",
        DOOR + "test_afterwards.py",
    ),
    Bug(
        "an answer of OPA that is undefined allows",
        "hooks/runner.py",
        "return HookResult(passed=result is True, text",
        "return HookResult(passed=result is not False, text",
        "tests/integration/test_hooks.py",
    ),
    Bug(
        "a hook that has not answered does not hold",
        "rollout/hooks.py",
        'return None if any(result is None for _, result in found) else ""',
        'return ""',
        "tests/unit/test_hooks.py",
    ),
    Bug(
        "a checklist takes NaN",
        "rollout/hooks.py",
        "elif not value >= check.least:",
        "elif value < check.least:",
        "tests/unit/test_hooks.py",
    ),
)
