// Shows /v1/pool, once a second while the page is visible. Text only ever goes in through textContent.
const byId = (id) => document.getElementById(id);
const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

byId("flower").href = `${location.protocol}//${location.hostname}:5555/`;

function fill(body, rows, empty) {
  const shown = rows.length ? rows : [[empty]];
  body.replaceChildren(...shown.map((cells) => {
    const row = document.createElement("tr");
    for (const text of cells) row.insertCell().textContent = text;
    return row;
  }));
}

function workerRows(worker) {
  const name = worker.draining ? `${worker.id} (draining)` : worker.id;
  const head = [name, worker.device, `${mib(worker.used_bytes)} of ${mib(worker.budget_bytes)}`];
  if (!worker.runners.length) return [[...head, "–", "no runner", "", ""]];
  return worker.runners.map((runner, index) => [
    ...(index ? ["", "", ""] : head),
    runner.model,
    runner.state === "starting" ? `loading ${Math.round(runner.progress * 100)} %` : runner.state,
    `${runner.in_flight} of ${runner.slots}`,
    mib(runner.bytes),
  ]);
}

async function refresh() {
  const status = byId("status");
  try {
    const reply = await fetch("/v1/pool");
    const pool = await reply.json();
    if (!reply.ok) throw new Error(pool.detail);
    fill(byId("runners"), pool.workers.flatMap(workerRows), "No worker is running.");
    fill(byId("queues"), pool.queues.map((q) => [q.model, q.depth, `${q.oldest_age_s.toFixed(1)} s`]), "Nothing waits.");
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
loop();
