// The ladders of boots and the machines that are no nodes. Uses el, fill, word,
// clock and svgNS of page.js; all text goes in as text nodes.
"use strict";

const bootTone = { serves: "ok", stuck: "bad", boots: "busy", waits: "wait", local: "wait", over: "wait" };
const opened = new Map(); // by MAC address: the boots of a card that is open

const span = (ms) => (ms >= 600000 ? Math.round(ms / 60000) + " min" : ms >= 10000 ? (ms / 1000).toFixed(1) + " s" : (ms / 1000).toFixed(2) + " s");

function chips(rungs) {
  return el("ol", { class: "rungs", "aria-label": "rungs" }, ...rungs.map((r) =>
    el("li", { class: r.state, title: r.name + ": " + r.state + (r.tookMillis ? ", " + span(r.tookMillis) : "") }, r.name)));
}

function rungBar(r, total) {
  const svg = document.createElementNS(svgNS, "svg");
  svg.setAttribute("viewBox", "0 0 100 14");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const parts = [["track", 0, 100]];
  if (["done", "now", "stuck"].includes(r.state)) parts.push([r.state, 100 * r.atMillis / total, Math.max(0.6, 100 * r.tookMillis / total)]);
  for (const [cls, x, width] of parts) {
    const rect = document.createElementNS(svgNS, "rect");
    for (const [k, v] of Object.entries({ class: cls, x, y: 0, width, height: 14 })) rect.setAttribute(k, v);
    svg.append(rect);
  }
  return svg;
}

function rungRow(r, total) {
  const passed = r.state !== "ahead" && r.state !== "skipped";
  return el("div", { class: "row" }, el("span", {}, r.name), el("span", { class: "word " + ({ done: "ok", stuck: "bad", now: "busy" }[r.state] || "") }, r.state),
    rungBar(r, total), el("span", { class: "mono" }, passed ? span(r.tookMillis) : "–"), el("span", { class: "text", title: r.text || "" }, r.text || ""));
}

function asked(l) {
  const rows = [];
  for (const r of l.rungs) {
    for (const s of r.steps || []) {
      const text = s.request + (s.again ? ` (${s.again + 1} times)` : "") + (s.answer ? " → " + s.answer : "") + (s.reason ? ": " + s.reason : "");
      rows.push(el("li", { class: s.failed ? "failed" : "" }, el("span", { class: "mono" }, "+" + span(s.afterMillis)), el("span", {}, s.protocol), el("span", {}, text)));
    }
  }
  if (l.dropped) rows.push(el("li", {}, el("span"), el("span"), el("span", { class: "empty" }, `${l.dropped} more requests were seen and are not kept`)));
  return el("ol", { class: "asked" }, ...rows);
}

function ladder(l) {
  const total = Math.max(l.totalMillis, ...l.rungs.map((r) => r.atMillis + r.tookMillis), 1);
  return [
    ...(l.findings || []).map((f) => el("div", { class: "finding " + f.gravity }, el("p", {}, (f.code ? f.code + ": " : "") + f.text), f.fix ? el("p", { class: "fix" }, "Fix: " + f.fix) : null)),
    el("div", { class: "ladder" }, ...l.rungs.map((r) => rungRow(r, total))),
    asked(l),
  ];
}

function bootCard(l) {
  const card = el("details", { class: "boot " + (bootTone[l.state] || "busy") },
    el("summary", {},
      el("span", { class: "who" }, el("strong", {}, l.node || "unknown machine"), el("span", { class: "mono" }, l.mac)),
      chips(l.rungs), el("span", { class: "word " + (bootTone[l.state] || "") }, l.state),
      el("span", { class: "verdict" }, l.verdict, " ", el("span", { class: "empty" }, `(boot ${l.number}, ${clock(l.began)})`))));
  const inside = el("div");
  card.append(inside);
  const draw = () => {
    const all = opened.get(l.mac);
    if (!all) return;
    inside.replaceChildren(...(all.length ? ladder(all[0]) : []), ...all.slice(1).map((e) =>
      el("p", { class: "empty" }, `Boot ${e.number}, ${new Date(e.began).toLocaleString([], { hour12: false })}: ${e.state}; ${e.verdict}`)));
  };
  if (opened.has(l.mac)) { card.open = true; draw(); }
  card.addEventListener("toggle", async () => {
    if (!card.open) { opened.delete(l.mac); return; }
    if (!opened.has(l.mac)) opened.set(l.mac, []);
    await readBoots(l.mac);
    draw();
  });
  return card;
}

async function readBoots(mac) {
  const r = await fetch("/api/v1/boots/" + encodeURIComponent(mac));
  if (r.ok && opened.has(mac)) opened.set(mac, await r.json());
}

function machine(m) {
  const f = m.facts || {};
  const hardware = [f.cpus ? f.cpus + " CPU" : "", f.memoryMiB ? f.memoryMiB + " MiB" : "", f.disks ? f.disks.length + " disks" : "", f.arch || ""].filter(Boolean).join(", ");
  return el("tr", {},
    el("td", { class: "mono" }, el("div", {}, m.id), el("div", { class: "empty" }, (m.macs || []).filter((x) => x !== m.id).join(" "))), el("td", {}, m.state),
    el("td", {}, [f.vendor, f.product, f.serial].filter(Boolean).join(" ") || "–"), el("td", {}, hardware || "–"),
    el("td", {}, m.firmware || "–"), el("td", { class: "mono" }, m.address || "–"), el("td", {}, clock(m.firstSeen)), el("td", {}, clock(m.lastSeen)));
}

let readingBoots = false;

async function boots() {
  if (readingBoots) return;
  readingBoots = true;
  try {
    const [b, m] = await Promise.all([fetch("/api/v1/boots"), fetch("/api/v1/machines")]);
    if (b.ok) {
      const all = await b.json();
      await Promise.all(all.filter((l) => opened.has(l.mac)).map((l) => readBoots(l.mac)));
      const focus = document.activeElement && document.activeElement.closest(".boot");
      const at = focus ? [...$("boots").children].indexOf(focus) : -1;
      $("boots").replaceChildren(...(all.length ? all.map(bootCard) : [el("p", { class: "empty" }, "No machine has asked for anything yet")]));
      if (at >= 0 && $("boots").children[at]) $("boots").children[at].querySelector("summary").focus();
    }
    if (m.ok) {
      const all = await m.json();
      $("machines-box").hidden = !all.length;
      fill($("machines"), all.map(machine), 8, "None");
    }
  } catch { /* the page says that it is offline */ }
  readingBoots = false;
}

boots();
setInterval(boots, 3000);
