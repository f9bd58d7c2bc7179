
"use strict";
const LIMITS = {{ facts.limits | tojson }};
const EXPLAINS = {{ facts.evidence_map | tojson }};
const ASKS_TOKEN = {{ asks_token | tojson }};
const SLIDE = /\.(svs|ndpi|mrxs|scn|vms|vmu|bif|svslide|dcm)$/i;
const PICTURE = /\.(bmp|jpe?g|png|tiff?|webp)$/i;
const AT_ONCE = Math.min(8, LIMITS.files); // files a request
const TRAINED_ON = {{ facts.trained_on | tojson }};
const PARALLEL = 2; // requests under way
const COLUMNS = ["file", "probability", "label", "error", "trained_on", "spread", "novelty", "note"]; // as predict.py
const $ = (id) => document.getElementById(id);
let rows = []; // {file, name, answer, element, url}
let queue = [];
let under_way = 0;
let order = { key: null, down: false };

$("token-row").hidden = !ASKS_TOKEN;
$("token").value = new URLSearchParams(location.hash.slice(1)).get("token") || "";
history.replaceState(null, "", location.pathname); // the token stays out of the address

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function say(message) {
  $("messages").append(element("p", message, "error"));
}

function megabytes(bytes) {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(0)} MB`;
}

function report() {
  const done = rows.filter((row) => row.answer).length;
  const failed = rows.filter((row) => row.answer && row.answer.error).length;
  $("progress").hidden = done === rows.length;
  $("progress").max = Math.max(rows.length, 1);
  $("progress").value = done;
  $("status").textContent = rows.length
    ? `${done} of ${rows.length} images done${failed ? `, ${failed} of them without an answer` : ""}.`
    : "No image yet.";
  $("csv").disabled = !done;
  $("clear").disabled = !rows.length;
  $("table").hidden = !rows.length;
}

function add(files) {
  const slides = files.filter((file) => SLIDE.test(file.name));
  for (const file of slides)
    say(`A slide is read in tiles, which this page does not do. Ask: python predict.py ckpt=CHECKPOINT img="${file.name}"`);
  let pictures = files.filter((file) => !SLIDE.test(file.name));
  const others = pictures.filter((file) => file.path && !PICTURE.test(file.name)).length;
  if (others) say(`Passed over, as no images: ${others} of the folder's files.`);
  pictures = pictures.filter((file) => !file.path || PICTURE.test(file.name));
  if (rows.length + pictures.length > LIMITS.dropped) {
    say(`${pictures.length} images are too many for this page, which takes ${LIMITS.dropped} at a time. ` +
      "For a whole folder ask: python predict.py ckpt=CHECKPOINT img=FOLDER");
    return report();
  }
  for (const file of pictures) {
    const row = { file: file.file, name: file.name, answer: null, url: null };
    rows.push(row);
    show(row);
    if (row.file.size > LIMITS.file_bytes)
      settle(row, { error: `This file is too large: ${megabytes(row.file.size)}. At most ${megabytes(LIMITS.file_bytes)} are taken.` });
    else queue.push(row);
  }
  report();
  work();
}

function show(row) {
  const line = element("tr", undefined, "answer");
  const picture = element("td", undefined, "picture");
  if (row.file.size <= LIMITS.file_bytes) {
    row.url = URL.createObjectURL(row.file);
    const image = element("img", undefined, "thumb");
    image.alt = "";
    image.loading = "lazy";
    image.onerror = () => image.remove();
    image.src = row.url;
    picture.append(image);
  }
  line.append(picture, element("td", row.name, "name"));
  for (const name of ["probability", "label", "novelty", "more"]) {
    const cell = element("td", "", name === "probability" || name === "novelty" ? "number" : name);
    if (cell.className === "number") cell.dataset.name = name;
    line.append(cell);
  }
  row.element = line;
  $("table").tBodies[0].append(line);
}

function settle(row, answer) {
  row.answer = { file: row.name, probability: null, label: null, novelty: null, note: null, trained_on: TRAINED_ON, ...answer };
  if (!row.element.isConnected) return;
  const cells = row.element.cells;
  const { probability, label, novelty, note, error } = row.answer;
  cells[2].textContent = probability === null ? "" : probability.toFixed(4);
  cells[3].textContent = error || (note ? `${label} (${note})` : label);
  cells[3].classList.toggle("error", Boolean(error));
  cells[4].textContent = novelty === null ? "" : novelty.toFixed(2);
  if (!error && EXPLAINS) {
    const button = element("button", "Map");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    button.setAttribute("aria-label", `Evidence map of ${row.name}`);
    button.onclick = () => toggle(row, button);
    cells[5].append(button);
  }
}

async function send(batch, explain) {
  const form = new FormData();
  for (const row of batch) form.append("files", row.file, row.name);
  const headers = $("token").value ? { Authorization: `Bearer ${$("token").value}` } : {};
  for (;;) {
    const response = await fetch(`api/predict${explain ? "?explain=true" : ""}`, { method: "POST", body: form, headers });
    if (response.status === 429) {
      await new Promise((resume) => setTimeout(resume, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
      continue;
    }
    if (response.status === 401) {
      $("token").setAttribute("aria-invalid", "true");
      $("token").focus();
      throw new Error("The token is missing or wrong. Enter the one that you were given at the top, clear the table, and send the images again.");
    }
    $("token").removeAttribute("aria-invalid");
    const body = await response.json();
    if (body.predictions) return body.predictions;
    throw new Error(body.error ? body.error.message : `The server answered ${response.status}.`);
  }
}

async function work() {
  while (under_way < PARALLEL && queue.length) {
    const batch = [];
    let bytes = 0;
    while (queue.length && batch.length < AT_ONCE && (!batch.length || bytes + queue[0].file.size < LIMITS.request_bytes * 0.95)) {
      bytes += queue[0].file.size;
      batch.push(queue.shift());
    }
    under_way += 1;
    ask(batch).finally(() => {
      under_way -= 1;
      work();
    });
  }
}

async function ask(batch) {
  try {
    const answers = await send(batch, false);
    batch.forEach((row, index) => settle(row, answers[index]));
  } catch (error) {
    const reason = error instanceof TypeError ? "The server cannot be reached, or the file has changed since." : error.message;
    for (const row of batch) settle(row, { error: reason });
  }
  report();
}

async function toggle(row, button) {
  if (row.details) {
    row.details.remove();
    row.details = null;
    button.setAttribute("aria-expanded", "false");
    return;
  }
  button.disabled = true;
  const line = element("tr", undefined, "details");
  const cell = element("td");
  cell.colSpan = 6;
  line.append(cell);
  try {
    const [answer] = await send([row], true);
    if (answer.error) throw new Error(answer.error);
    const pair = element("div", undefined, "pair");
    pair.append(figure(row.url, `${row.name}, probability ${answer.probability.toFixed(4)}`, row.name));
    const caption = `Red speaks for malignant, blue for benign: ${EXPLAINS}. It shows where the answer comes from, and not that the place is malignant.`;
    pair.append(figure(answer.evidence_map, caption, `Evidence map of ${row.name}`));
    cell.append(pair);
    button.setAttribute("aria-expanded", "true");
  } catch (error) {
    cell.append(element("p", error.message, "error"));
  }
  row.details = line;
  row.element.after(line);
  button.disabled = false;
}

function figure(source, caption, name) {
  const made = element("figure");
  const image = element("img");
  image.src = source;
  image.alt = name;
  made.append(image, element("figcaption", caption));
  return made;
}

function sort(key) {
  order = { key, down: order.key === key ? !order.down : key !== "file" };
  const value = (row) => (row.answer ? row.answer[key] : null);
  const sign = order.down ? -1 : 1;
  rows.sort((a, b) => {
    const [one, other] = [value(a), value(b)];
    if (one === null || other === null) return (one === null) - (other === null); // those without a value last
    return sign * (typeof one === "number" ? one - other : one.localeCompare(other));
  });
  for (const row of rows) {
    $("table").tBodies[0].append(row.element);
    if (row.details) row.element.after(row.details);
  }
  for (const head of document.querySelectorAll("th[data-key]"))
    if (head.dataset.key === key) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
}

function quoted(value) {
  let text = value === null || value === undefined ? "" : String(value);
  if (typeof value === "string" && /^[=+\-@\t]/.test(text)) text = `'${text}`; // a spreadsheet would run it
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

$("csv").onclick = () => {
  const lines = rows.filter((row) => row.answer).map((row) => COLUMNS.map((name) => quoted(row.answer[name])).join(","));
  const blob = new Blob([[COLUMNS.join(","), ...lines].join("\r\n") + "\r\n"], { type: "text/csv" });
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = "predictions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

$("clear").onclick = () => {
  for (const row of rows) if (row.url) URL.revokeObjectURL(row.url);
  rows = [];
  queue = [];
  $("table").tBodies[0].replaceChildren();
  $("messages").replaceChildren();
  report();
};

for (const head of document.querySelectorAll("th[data-key]"))
  head.firstElementChild.onclick = () => sort(head.dataset.key);

function chosen(event) {
  add([...event.target.files].map((file) => ({ file, name: file.webkitRelativePath || file.name, path: file.webkitRelativePath })));
  event.target.value = "";
}
$("files").onchange = chosen;
$("folder").onchange = chosen;

async function* entries(entry, path) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    yield { file, name: path + file.name, path };
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return;
    for (const one of some) yield* entries(one, `${path}${entry.name}/`);
  }
}

async function dropped(items) {
  const found = [];
  try {
    for (const entry of items) for await (const file of entries(entry, "")) found.push(file);
  } catch (error) {
    say(`A file cannot be read: ${error.message}`);
  }
  add(found);
}

for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name !== "drop") return;
    const items = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry());
    if (items.every(Boolean)) dropped(items);
    else add([...event.dataTransfer.files].map((file) => ({ file, name: file.name })));
  });
