/** The demo page: pictures dropped, pasted or chosen are captioned one after another, and stay in sight. */

import { copy } from "./copy.js";
import { copyToSend, look } from "./serve_pictures.js";
import { Refusal, address, ask, get } from "./serve_service.js";
import { clearPicture, mark, show, tile } from "./serve_view.js";
import { bytes, counted } from "./serve_words.js";

/**
 * A picture and what became of it. `sent`: the copy that goes to the service in the file's place. `left`: seconds of a pause.
 * `small`, `width`, `height`: as soon as the browser has looked at it, if it can show it.
 * @typedef {{
 *   file: File, sent: File | null, beamSize: number,
 *   state: "waiting" | "working" | "paused" | "done" | "failed" | "stopped",
 *   answer: import("./serve_service.js").Answer | null, refusal: Refusal | null, left: number,
 *   resume: () => void, abort: AbortController, small: string | null, width: number, height: number,
 *   tile: HTMLLIElement,
 * }} Job
 */

const AT_ONCE = 60; // pictures taken of one drop
const KEPT = 120; // pictures in sight

const element = (id) => document.getElementById(id);
const beams = element("beam-size");

/** @type {Job[]} the newest first */
const jobs = [];
/** @type {Job[]} in the order in which they came */
const queue = [];
/** @type {Job | null} */
let shown = null;
let busy = false;
let looked = Promise.resolve();
let limits = {};

// -- taking pictures in -----------------------------------------------------------------------------------------------

/** @param {Iterable<File>} files */
function take(files) {
  const all = [...files];
  if (all.length === 0) return;
  const taken = all.slice(0, AT_ONCE).map(newJob);
  notice(
    all.length > AT_ONCE
      ? `The first ${AT_ONCE} of ${all.length} files were taken. For whole folders there is the command: pycap caption CHECKPOINT FOLDER`
      : "",
  );
  jobs.unshift(...taken);
  element("history").prepend(...taken.map((job) => job.tile));
  for (const old of jobs.splice(KEPT)) forget(old);
  select(taken[0]);
  enqueue(...taken);
}

/**
 * @param {File} file
 * @returns {Job}
 */
function newJob(file) {
  const job = {
    file,
    sent: null,
    beamSize: Number(beams.value),
    state: "waiting",
    answer: null,
    refusal: null,
    left: 0,
    resume: () => {},
    abort: new AbortController(),
    small: null,
    width: 0,
    height: 0,
    tile: tile(file.name, () => select(job)),
  };
  looked = looked.then(() => lookAt(job)); // one at a time: a decoded photograph takes 50 MB
  return job;
}

/** @param {Job} job */
async function lookAt(job) {
  const seen = await look(job.file);
  if (seen === null) return;
  job.small = URL.createObjectURL(seen.small);
  job.width = seen.width;
  job.height = seen.height;
  draw(job);
}

/** @param {Job} job */
function forget(job) {
  job.abort.abort();
  job.tile.remove();
  if (job.small) URL.revokeObjectURL(job.small);
  if (queue.includes(job)) queue.splice(queue.indexOf(job), 1);
}

/** @param {string} text */
function notice(text) {
  element("notice").textContent = text;
}

// -- captioning -------------------------------------------------------------------------------------------------------

/** @param {Job[]} more */
async function enqueue(...more) {
  for (const job of more) {
    job.state = "waiting";
    job.refusal = null;
    job.abort = new AbortController();
    queue.push(job);
    draw(job);
  }
  if (busy) return;
  busy = true;
  for (let job = queue.shift(); job; job = queue.shift()) await caption(job);
  busy = false;
}

/** @param {Job} job */
async function caption(job) {
  const { signal } = job.abort;
  const file = job.sent ?? job.file;
  let asked;
  change(job, { state: "working" });
  try {
    if (file.size > limits.max_bytes) {
      const most = bytes(limits.max_bytes);
      throw new Refusal(413, `${file.name} has ${bytes(file.size)}, and this service takes up to ${most} a picture.`);
    }
    do {
      asked = job.beamSize; // which may be another one when the answer comes
      job.answer = await ask(file, asked, signal, (refusal) => pause(job, refusal));
    } while (asked !== job.beamSize);
    change(job, { state: "done" });
  } catch (error) {
    if (signal.aborted) return change(job, { state: "stopped" });
    if (!(error instanceof Refusal)) console.error(error);
    change(job, { state: "failed", refusal: error instanceof Refusal ? error : new Refusal(-1, String(error)) });
  }
}

/**
 * Wait as long as the service asks for, second by second; until then by hand if somebody cannot wait.
 * @param {Job} job
 * @param {Refusal} refusal
 * @returns {Promise<void>}
 */
function pause(job, refusal) {
  return new Promise((resolve, reject) => {
    const { signal } = job.abort;
    const clock = setInterval(() => {
      if (job.left <= 1) resume();
      else change(job, { left: job.left - 1 });
    }, 1000);
    const stopped = () => {
      clearInterval(clock);
      reject(signal.reason);
    };
    const resume = () => {
      clearInterval(clock);
      signal.removeEventListener("abort", stopped);
      change(job, { state: "working" });
      resolve();
    };
    signal.addEventListener("abort", stopped);
    change(job, { state: "paused", refusal, left: Math.ceil(refusal.wait), resume });
  });
}

function stop() {
  for (const job of queue.splice(0)) change(job, { state: "stopped" });
  jobs.find((job) => ["working", "paused"].includes(job.state))?.abort.abort();
}

/** @param {Job} job */
function again(job) {
  if (job.state === "paused") job.resume();
  else enqueue(job);
}

/** @param {Job} job */
async function sendSmaller(job) {
  job.sent = await copyToSend(job.file);
  if (job.sent) enqueue(job);
  else notice(`This browser cannot show ${job.file.name}, and so cannot make it smaller.`);
}

// -- showing ----------------------------------------------------------------------------------------------------------

/**
 * @param {Job} job
 * @param {Partial<Job>} what
 */
function change(job, what) {
  Object.assign(job, what);
  draw(job);
}

/** @param {Job} job whose looks may have changed */
function draw(job) {
  mark(job, job === shown);
  if (job === shown) show(job, queue.length);
  const over = jobs.filter((each) => !["waiting", "working", "paused"].includes(each.state)).length;
  element("tally").textContent = over < jobs.length ? `${over} of ${jobs.length} done` : counted(jobs.length, "picture");
  element("session").hidden = jobs.length < 2;
}

/** @param {Job} job */
function select(job) {
  const before = shown;
  shown = job;
  document.body.classList.remove("empty");
  beams.value = String(job.beamSize);
  if (before) mark(before, false);
  draw(job);
  element("figure").scrollIntoView({ block: "nearest" });
}

function clear() {
  stop();
  for (const job of jobs.splice(0)) forget(job);
  shown = null;
  clearPicture();
  element("session").hidden = true;
  document.body.classList.add("empty");
  element("choose").focus();
}

/**
 * @param {HTMLButtonElement} button
 * @param {HTMLElement} source whose text is copied
 */
async function copyBy(button, source) {
  await copy(source);
  const label = button.textContent;
  button.textContent = "Copied";
  button.disabled = true;
  setTimeout(() => Object.assign(button, { textContent: label, disabled: false }), 1500);
}

// -- what somebody does -----------------------------------------------------------------------------------------------

for (const [button, input] of [
  ["choose", "file"],
  ["photograph", "camera"],
]) {
  element(button).addEventListener("click", () => element(input).click());
  element(input).addEventListener("change", ({ target }) => {
    take(target.files);
    target.value = ""; // so that the same file may be chosen again
  });
}
element("zone").addEventListener("click", () => element("file").click());

document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData.files.length) take(clipboardData.files);
  else notice("What was pasted is no picture: copy one, or a picture file.");
});

document.addEventListener("dragenter", (event) => {
  element("drop").hidden = !event.dataTransfer.types.includes("Files");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) element("drop").hidden = true;
});
document.addEventListener("dragover", (event) => {
  event.preventDefault(); // else the browser would open what is dropped in the page's place
  event.dataTransfer.dropEffect = "copy";
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  element("drop").hidden = true;
  const folders = [...event.dataTransfer.items].filter((item) => item.webkitGetAsEntry?.()?.isDirectory).length;
  if (folders) notice("Folders are not taken here: drop the pictures in it, or use the command pycap caption.");
  else if (event.dataTransfer.files.length) take(event.dataTransfer.files);
  else notice("That was no picture file. The service opens no addresses: save the picture first, then drop the file.");
});

beams.addEventListener("change", () => {
  if (shown === null) return;
  shown.beamSize = Number(beams.value);
  if (!["waiting", "working", "paused"].includes(shown.state)) enqueue(shown);
});
element("retry").addEventListener("click", () => again(shown));
element("shrink").addEventListener("click", () => sendSmaller(shown));
element("stop").addEventListener("click", stop);
element("clear").addEventListener("click", clear);
element("copy").addEventListener("click", ({ target }) => copyBy(target, element("caption")));
element("copy-curl").addEventListener("click", ({ target }) => copyBy(target, element("curl")));

// -- what the service says of itself ----------------------------------------------------------------------------------

async function introduce() {
  const model = await (await get("model/metadata")).json();
  limits = model.limits;
  beams.replaceChildren(...Array.from({ length: limits.max_beam_size }, (_, n) => new Option(String(n + 1))));
  beams.value = String(limits.beam_size);
  element("file").accept = model.formats.join(","); // a phone that has another format converts it
  const made = model.architectures.join(" + ");
  element("model").textContent = `${model.name}: ${made}, ${model.image_size} px, ${counted(model.vocabulary, "word")}`;
}

async function offerExamples() {
  for (const { name, image } of await (await get("examples")).json()) {
    const item = tile(name, async () => {
      const blob = await (await get(image)).blob();
      take([new File([blob], name, { type: blob.type })]);
    });
    item.querySelector("img").src = address(image);
    item.querySelector(".words").className = "unseen";
    element("example-list").append(item);
    element("examples").hidden = false;
  }
}

element("curl").textContent = `curl -F image=@photo.jpg -F beam_size=3 ${address("model/predict")}`;
if (/Mac|iP(hone|ad)/.test(navigator.platform)) element("paste-key").textContent = "⌘ V";
Promise.all([introduce(), offerExamples()]).catch((error) => {
  element("model").textContent = "The service does not answer";
  notice(`The page could not be filled (${error.message}). Reload it when the service is back.`);
});
