// Shows /v1/pool, once a second while the page is visible. Text only ever goes in through textContent.
const byId = (id) => document.getElementById(id);
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

function size(bytes) {
  let unit = 0;
  while (bytes >= 1024 && unit < UNITS.length - 1) [bytes, unit] = [bytes / 1024, unit + 1];
  return `${bytes.toFixed(unit && bytes < 100 ? 1 : 0)} ${UNITS[unit]}`;
}

function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function row(...cells) {
  const made = document.createElement("tr");
  for (const [text, className] of cells) made.append(element("td", text, className));
  return made;
}

function runnerRow(runner) {
  const closed = runner.closed_slots ? `, ${runner.slots - runner.closed_slots} open` : "";
  const made = row(
    [[runner.model, ...Object.keys(runner.adapters)].join(" + ")],
    [""],
    [`${runner.in_flight} of ${runner.slots}${closed}`, "number"],
    [runner.idle_s === null ? "–" : `${Math.round(runner.idle_s)} s`, "number"],
    [size(runner.bytes), "number"],
    [runner.pid, "number"],
  );
  const state = runner.state === "starting" ? `loading ${Math.round(runner.progress * 100)} %` : runner.state;
  made.cells[1].append(element("span", state, `state ${runner.state}`));
  if (closed) made.cells[2].title = `The others open as jobs come; each takes ${size(runner.slot_bytes)} more.`;
  return made;
}

function workerCard(worker) {
  const card = element("section", "", "card");
  const head = card.appendChild(element("div", "", "head"));
  head.append(element("strong", worker.id), element("span", worker.device));
  if (worker.draining) head.append(element("span", "draining", "state draining"));
  const meter = head.appendChild(document.createElement("meter"));
  Object.assign(meter, { max: worker.budget_bytes, value: worker.used_bytes, title: "memory in use of the budget" });
  head.append(element("span", `${size(worker.used_bytes)} of ${size(worker.budget_bytes)}`));
  for (const warning of worker.warnings) card.append(element("p", warning, "warning"));
  if (!worker.runners.length) {
    card.append(element("p", "No model is warm. The first job for one loads it."));
    return card;
  }
  const table = card.appendChild(document.createElement("table"));
  const titles = table.createTHead().insertRow();
  for (const [text, className] of [
    ["Model"], ["State"], ["Busy", "number"], ["Idle for", "number"], ["Memory", "number"], ["Process", "number"],
  ]) titles.append(element("th", text, className));
  table.createTBody().append(...worker.runners.map(runnerRow));
  return card;
}

function queueRow(queue) {
  return row([queue.model], [queue.depth, "number"], [`${queue.oldest_age_s.toFixed(1)} s`, "number"]);
}

async function refresh() {
  const status = byId("status");
  try {
    const reply = await fetch("/v1/pool");
    const pool = await reply.json();
    if (!reply.ok) throw new Error(pool.detail);
    byId("workers").replaceChildren(
      ...(pool.workers.length ? pool.workers.map(workerCard) : [element("p", "No worker is running.")]));
    byId("queues").replaceChildren(
      ...(pool.queues.length ? pool.queues.map(queueRow) : [row(["Nothing waits."], [""], [""])]));
    status.textContent = `As of ${new Date().toLocaleTimeString()}`;
    status.className = "";
  } catch (error) {
    status.textContent = `The pool can't be read: ${error.message}`;
    status.className = "broken";
  }
}

async function loop() {
  if (!document.hidden) await refresh();
  setTimeout(loop, 1000);
}

const flower = byId("flower");
if (flower.dataset.port === "0") flower.remove();
else flower.href = `${location.protocol}//${location.hostname}:${flower.dataset.port}/`;
loop();
