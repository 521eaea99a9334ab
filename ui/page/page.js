// The status page: one snapshot, repeated after every event. All text goes in as
// text nodes, never as HTML: names come from machines.
"use strict";

const $ = (id) => document.getElementById(id);

function el(tag, attrs, ...kids) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs || {})) e.setAttribute(k, v);
  for (const k of kids) if (k !== undefined && k !== null) e.append(k);
  return e;
}

const tones = {
  running: "ok", succeeded: "ok", idle: "ok", suspect: "bad", blocked: "bad", down: "bad", quarantined: "bad", failed: "bad", waiting: "bad",
};
const word = (text) => el("span", { class: "word " + (tones[text] || "busy") }, text || "–");

function bytes(n) {
  if (!n) return "0";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i++; }
  return (n >= 10 || i === 0 ? Math.round(n) : n.toFixed(1)) + " " + units[i];
}

const clock = (t) => (t ? new Date(t).toLocaleTimeString([], { hour12: false }) : "–");

function fill(table, rows, columns, none) {
  const body = table.tBodies[0];
  body.replaceChildren(...rows);
  if (!rows.length) body.append(el("tr", {}, el("td", { colspan: columns, class: "empty" }, none)));
}

function pairs(list) {
  const dl = el("dl");
  for (const [k, v] of list) if (v) dl.append(el("dt", {}, k), el("dd", {}, v));
  return dl;
}

function application(a) {
  const s = a.status;
  const checks = (s.checks || []).map((c) => `${c.monitor} (${c.vantage}): ${c.ok ? "ok" : "failed"}${c.why ? ", " + c.why : ""}`).join("; ");
  return el("article", { class: "card " + (tones[s.phase] || "busy") },
    el("h3", {}, el("span", {}, a.name), word(s.phase)),
    pairs([
      ["node", s.node], ["address", a.address], ["epoch", s.epoch ? String(s.epoch) : ""], ["way", s.way],
      ["image", a.image], ["since", s.since ? clock(s.since) : ""], ["checks", checks],
      ["excluded by", s.evidence ? s.evidence + (s.proven ? " (" + s.proven + ")" : "") : ""], ["why", s.reason], ["frozen", s.frozen],
    ]));
}

function node(n) {
  const s = n.status;
  return el("tr", {},
    el("td", {}, n.name), el("td", {}, n.pool), el("td", {}, word(s.phase)), el("td", {}, s.power + (s.linked ? ", agent connected" : "")),
    el("td", {}, s.application || "–"), el("td", {}, s.epoch ? String(s.epoch) : "–"), el("td", { class: "mono" }, s.address || "–"),
    el("td", { class: "mono" }, n.bmc.address || "–"), el("td", {}, `${n.cpus} CPU, ${n.memoryMiB} MiB, ${n.arch}`), el("td", {}, s.reason || ""));
}

function volume(v) {
  return el("tr", {},
    el("td", { class: "mono" }, v.name), el("td", {}, bytes(v.sizeBytes)), el("td", {}, bytes(v.allocatedBytes)),
    el("td", {}, v.grantNode ? `${v.grantNode}, epoch ${v.grantEpoch}` : v.epoch ? `none, nothing below epoch ${v.epoch}` : "–"),
    el("td", { class: "mono" }, (v.sessions || []).map((x) => x.address).join(", ") || "–"), el("td", {}, clock(v.lastWrite)));
}

const svgNS = "http://www.w3.org/2000/svg";

function bar(name, from, seconds, total) {
  const svg = document.createElementNS(svgNS, "svg");
  svg.setAttribute("viewBox", "0 0 100 14");
  svg.setAttribute("preserveAspectRatio", "none");
  for (const [cls, x, w] of [["track", 0, 100], ["bar", 100 * from / total, Math.max(0.4, 100 * seconds / total)]]) {
    const r = document.createElementNS(svgNS, "rect");
    for (const [k, v] of Object.entries({ class: cls, x, y: 0, width: w, height: 14 })) r.setAttribute(k, v);
    svg.append(r);
  }
  return el("div", { class: "row" }, el("span", {}, name), svg, el("span", { class: "mono" }, seconds.toFixed(1) + " s"));
}

const phases = ["detect", "fence", "provision", "boot", "online"];

function failover(f) {
  $("failover").hidden = !f;
  if (!f) return;
  $("h-failover").textContent = (f.outcome === "running" ? "Failover now: " : "Last failover: ") + f.application;
  $("failover-line").replaceChildren(word(f.outcome), ` ${f.cause}; ${f.from || "nowhere"} to ${f.to || "(no node yet)"}, epoch ${f.epoch}` +
    (f.evidence ? `; previous node excluded by ${f.evidence}` : "") + (f.reason ? `; ${f.reason}` : ""));
  const secs = f.seconds || {};
  const known = phases.filter((p) => secs[p] !== undefined);
  const total = Math.max(secs.total || 0, known.reduce((t, p) => t + secs[p], 0), 0.001);
  let at = 0;
  $("gantt").replaceChildren(...known.map((p) => { const r = bar(p, at, secs[p], total); at += secs[p]; return r; }));
  $("steps").replaceChildren(...(f.steps || []).map((s) => el("li", {},
    el("span", { class: "mono" }, "+" + s.afterSeconds.toFixed(2) + " s"), el("span", {}, s.name), el("span", {}, s.text))));
  const rows = (f.candidates || []).map((c) => el("tr", {}, el("td", {}, c.node), el("td", {}, c.eligible ? "eligible" : "not eligible"),
    el("td", {}, (c.rules || []).filter((r) => !r.ok).map((r) => r.name + (r.why ? ": " + r.why : "")).join("; ") || "passes every rule"), el("td", {}, c.nearest || "")));
  $("candidates").replaceChildren(...rows);
  $("candidates-box").hidden = !rows.length;
}

function show(s) {
  $("verdict").textContent = s.site.verdict;
  $("version").textContent = s.site.version;
  const holds = s.site.holds || [];
  $("holds").hidden = !holds.length;
  $("holds").replaceChildren(...holds.map((h) => el("li", {}, h)));
  const apps = (s.applications || []).map(application);
  $("apps").replaceChildren(...(apps.length ? apps : [el("p", { class: "empty" }, "None yet: hotspare apply -f examples/orders.yaml")]));
  failover((s.failovers || []).find((f) => f.outcome === "running") || (s.failovers || []).find((f) => f.from) || (s.failovers || [])[0]);
  fill($("nodes"), (s.nodes || []).map(node), 10, "None yet: hotspare apply -f examples/nodes.yaml");
  fill($("volumes"), (s.volumes || []).map(volume), 6, "None yet");
  fill($("images"), (s.images || []).map((i) => el("tr", {}, el("td", {}, i.name), el("td", { class: "mono" }, i.version), el("td", {}, i.os || ""),
    el("td", { class: "mono" }, i.kernel || ""), el("td", {}, bytes(i.sizeBytes)),
    el("td", i.tested ? { title: i.tested.text } : {}, i.tested ? word(i.tested.ok ? "succeeded" : "failed") : "–"), el("td", { class: "mono" }, (i.digest || "").slice(0, 16)))), 7, "None yet: hotspare image import");
}

let pending = null;
let asking = false;

// refresh reads a snapshot soon; a burst of events costs one read.
function refresh() {
  if (pending) return;
  pending = setTimeout(async () => {
    pending = null;
    if (asking) { refresh(); return; }
    asking = true;
    try {
      const r = await fetch("/api/v1/snapshot");
      if (!r.ok) throw new Error((await r.json()).title);
      show(await r.json());
    } catch (e) {
      $("verdict").textContent = "cannot read the state: " + e.message;
    }
    asking = false;
  }, 150);
}

function live(on) {
  $("live").className = "live " + (on ? "on" : "off");
  $("live").textContent = on ? "live" : "offline";
}

const list = $("events");

function event(e) {
  list.prepend(el("li", {}, el("span", { class: "mono" }, clock(e.at)), el("span", {}, e.kind), el("span", {}, e.subject || ""), el("span", {}, e.text)));
  while (list.children.length > 200) list.lastChild.remove();
}

async function main() {
  refresh();
  setInterval(refresh, 5000); // what changes without an event: sizes, sessions
  let last = 0;
  try {
    const past = await (await fetch("/api/v1/events?limit=100")).json();
    past.forEach(event);
    last = past.length ? past[past.length - 1].id : 0;
  } catch { /* the stream below brings them */ }
  const source = new EventSource("/api/v1/events/stream?after=" + last);
  source.onopen = () => { live(true); refresh(); };
  source.onerror = () => live(false);
  source.addEventListener("event", (m) => { event(JSON.parse(m.data)); refresh(); });
}

main();
