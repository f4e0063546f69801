// Keeps a page as it would be if it were loaded now, and sends what its buttons ask for.
"use strict";

const live = document.getElementById("live");
const said = document.getElementById("said");
const ask = document.getElementById("ask");
const waiting = new Map();

// Put a fragment in the place of an element, with the focus where it was.
async function refresh(element, url) {
  const answer = await fetch(url, { credentials: "same-origin", redirect: "manual" });
  if (answer.type === "opaqueredirect") { location.href = "/login"; return; }
  if (!answer.ok) return;
  const box = document.createElement("template");
  box.innerHTML = await answer.text();
  const fresh = box.content.querySelector("#" + CSS.escape(element.id));
  const held = element.contains(document.activeElement) ? document.activeElement.dataset.verb : null;
  if (!fresh || !element.isConnected) return;
  element.replaceWith(fresh);
  if (held) fresh.querySelector(`[data-verb="${held}"]`)?.focus();
  filter();
}

// At once, then at most once in a while for each element.
function soon(element, url) {
  if (!element) return;
  const key = element.id;
  if (waiting.has(key)) { waiting.get(key).again = true; return; }
  const state = { again: false };
  waiting.set(key, state);
  refresh(element, url).catch(() => {}).finally(() => setTimeout(() => {
    waiting.delete(key);
    if (state.again) soon(document.getElementById(key), url);
  }, 300));
}

function look(service) {
  soon(document.getElementById("row-" + service), `/services/${service}/row`);
  const release = document.getElementById("release");
  if (release && release.dataset.service === service) soon(release, `/releases/${release.dataset.release}/live`);
}

function everything() {
  const names = new Set([...document.querySelectorAll("tr[data-service], #release")].map((e) => e.dataset.service));
  names.forEach(look);
}

function connect() {
  const one = document.getElementById("release")?.dataset.service;
  const source = new EventSource("/v1/events" + (one ? `?service=${one}` : ""));
  let lost = false;
  source.onopen = () => {
    live.textContent = "live";
    live.className = "on";
    if (lost) everything();
    lost = false;
  };
  source.onerror = () => {
    lost = true;
    live.textContent = "not connected; what you see may be old";
    live.className = "off";
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
  };
  for (const kind of JSON.parse(document.body.dataset.kinds)) {
    source.addEventListener(kind, (event) => look(JSON.parse(event.data).service));
  }
}

// Freezing is about a service; everything else is about a release of it.
const meant = (verb, service, release) => (verb.endsWith("freeze") ? service : release);

async function send(verb, service, release, reason) {
  const what = meant(verb, service, release);
  const body = { reason };
  if (what === release) body.release = release;
  const headers = { "Content-Type": "application/json", "X-Requested-By": "dashboard" };
  said.textContent = `${verb} of ${what} is being sent`;
  const answer = await fetch(`/v1/services/${service}/${verb}`, { method: "POST", headers, body: JSON.stringify(body) });
  const told = await answer.json();
  if (!answer.ok) { said.textContent = told.detail; return; }
  said.textContent = `${verb} of ${what} is asked for`;
  const became = await fetch(`/v1/requests/${told.request}?wait=20`).then((found) => found.json()).catch(() => null);
  if (!became) return;
  const words = { accepted: "is under way", refused: "was refused: " + became.reason, waiting: "waits for a daemon" };
  said.textContent = `${verb} of ${what} ${words[became.state] || became.detail}`;
  look(service);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-verb]");
  if (!button) return;
  const { verb, service, release } = button.dataset;
  document.getElementById("ask-title").textContent = `${verb} ${meant(verb, service, release)}?`;
  const why = document.getElementById("ask-why");
  why.value = "";
  ask.returnValue = "no";
  ask.showModal();
  why.focus();
  ask.onclose = () => {
    if (ask.returnValue === "yes") {
      send(verb, service, release, why.value).catch(() => { said.textContent = "it could not be sent"; });
    }
    document.querySelector(`button[data-verb="${verb}"][data-service="${service}"]`)?.focus();
  };
});

// Enter means yes: the first button of a form is Cancel, so that nothing is done by accident elsewhere.
document.getElementById("ask-why")?.addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); ask.close("yes"); }
});

function filter() {
  const words = document.getElementById("filter")?.value.toLowerCase() ?? "";
  for (const row of document.querySelectorAll("#services tbody tr")) {
    row.hidden = words !== "" && !row.textContent.toLowerCase().includes(words);
  }
}
document.getElementById("filter")?.addEventListener("input", filter);

connect();
