"use strict";
// Each row has the cells of the sheet, which are written back as they came, but for the answer and the speaker.
const { heads, rows, labels, further, sheet } = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const at = Object.fromEntries(heads.map((name, number) => [name, number]));
const keys = new Map();
labels.forEach((word, number) => number < 10 && keys.set(String((number + 1) % 10), word));
keys.set("n", further[0]);
keys.set("u", further[1]);
// The keys of the rows name the table's model and its rows, so that another review has answers of its own.
const store = `emotion-batch review ${rows.length} ${rows[0].cells[at.key]} ${rows[rows.length - 1].cells[at.key]}`;
let current = 0;

function remember() {
  const given = rows.map(({ cells }) => [cells[at.correct_emotion], cells[at.speaker]]);
  // A browser may refuse to keep anything of a local file; then the sheet must be saved before the page is closed.
  try { localStorage.setItem(store, JSON.stringify({ current, given })); } catch { return; }
}

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem(store));
    if (kept?.given?.length !== rows.length) return;
    kept.given.forEach(([answer, speaker], number) => {
      rows[number].cells[at.correct_emotion] = String(answer);
      rows[number].cells[at.speaker] = String(speaker);
    });
    current = Math.min(Math.max(0, kept.current | 0), rows.length - 1);
  } catch { return; }
}

function unguard(cell) {
  return cell.startsWith("'") ? cell.slice(1) : cell;
}

function show() {
  const { cells, audio, reason, wave } = rows[current];
  const channel = cells[at.channel] === "" ? "" : `channel ${cells[at.channel]}, `;
  $("place").textContent = `${current + 1} of ${rows.length}`;
  $("file").textContent = unguard(cells[at.file]);
  $("about").textContent = `${channel}${Number(cells[at.start_s]).toFixed(1)} s to ${Number(cells[at.end_s]).toFixed(1)} s; the model says ${unguard(cells[at.emotion])} (${Number(cells[at.confidence]).toFixed(2)})`;
  $("reason").textContent = reason ? `This clip cannot be heard: ${reason}` : "";
  const step = 240 / Math.max(1, wave.length);
  $("shape").setAttribute("d", wave.map((height, x) => {
    const half = Math.max(0.4, height * 0.28);
    return `M${(x * step).toFixed(2)} ${(30 - half).toFixed(2)}h${(step * 0.8).toFixed(2)}v${(2 * half).toFixed(2)}h${(-step * 0.8).toFixed(2)}z`;
  }).join(""));
  $("play").disabled = !audio;
  $("speaker").value = cells[at.speaker];
  for (const button of $("answers").children) {
    button.setAttribute("aria-pressed", String(button.dataset.word === cells[at.correct_emotion]));
  }
  const n = rows.filter((row) => row.cells[at.correct_emotion]).length;
  $("count").textContent = `${n} of ${rows.length} answered`;
  $("share").value = n;
  if (audio) $("sound").src = audio; else $("sound").removeAttribute("src");
}

function play() {
  if (!rows[current].audio) return;
  $("sound").currentTime = 0;
  $("sound").play().catch(() => {});
}

function go(step) {
  const wanted = Math.min(Math.max(0, current + step), rows.length - 1);
  if (wanted === current) return;
  current = wanted;
  remember();
  show();
  play();
}

function answer(word) {
  rows[current].cells[at.correct_emotion] = word;
  remember();
  show();
  if (word) go(1);
}

function makeSheet() {
  const quote = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  return "\uFEFF" + [heads, ...rows.map((row) => row.cells)].map((cells) => cells.map(quote).join(",") + "\r\n").join("");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([makeSheet()], { type: "text/csv" }));
  link.download = sheet;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

for (const [key, word] of [...keys].concat(labels.slice(10).map((word) => ["", word]))) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.word = word;
  button.textContent = word === further[0] ? "no emotion to hear" : word === further[1] ? "cannot tell" : word === "ps" ? "ps (pleasant surprise)" : word;
  if (key) button.append(Object.assign(document.createElement("kbd"), { textContent: key }));
  button.addEventListener("click", () => answer(word));
  $("answers").append(button);
}
$("play").addEventListener("click", play);
$("back").addEventListener("click", () => go(-1));
$("next").addEventListener("click", () => go(1));
$("clear").addEventListener("click", () => answer(""));
$("save").addEventListener("click", save);
$("speaker").addEventListener("input", () => {
  rows[current].cells[at.speaker] = $("speaker").value;
  remember();
});
$("sound").addEventListener("timeupdate", () => {
  const x = 240 * ($("sound").currentTime / ($("sound").duration || 1));
  $("head").setAttribute("x1", x);
  $("head").setAttribute("x2", x);
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === $("speaker")) {
    if (event.key === "Enter" || event.key === "Escape") $("speaker").blur();
    return;
  }
  const does = { " ": play, ArrowLeft: () => go(-1), ArrowRight: () => go(1), Backspace: () => answer(""), s: save }[event.key]
    ?? (keys.has(event.key) ? () => answer(keys.get(event.key)) : null);
  if (!does) return;
  event.preventDefault();
  does();
});
recall();
show();
