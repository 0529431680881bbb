/** What the demo page shows of a picture: itself, its caption and how that came about, or why there is none. */

import { bytes, counted, duration, exactly, odds, title } from "./serve_words.js";

/** @typedef {import("./serve.js").Job} Job */

// What the service tells of its time, in the order in which it is spent.
const STAGES = [
  ["received_ms", "upload"],
  ["decoded_ms", "decoding"],
  ["queued_ms", "queue"],
  ["model_ms", "model"],
];
// Statuses that the same picture would get again.
const FINAL = [-2, 400, 411, 413, 415, 422];

const element = (id) => document.getElementById(id);

/** The picture that is shown: its address lives until another one is. */
let source = { file: null, url: "" };

/**
 * @param {Job} job
 * @param {number} behind how many pictures wait for their turn
 */
export function show(job, behind) {
  showPicture(job);
  const { state, answer, refusal } = job;
  const active = ["waiting", "working", "paused"].includes(state);
  element("result").hidden = false;
  element("result").setAttribute("aria-busy", String(active));
  element("result").classList.toggle("stale", active && answer !== null);
  const trouble = ["failed", "stopped", "paused"].includes(state);
  const [wrong, reason] =
    state === "stopped" ? ["Stopped", "The picture was not captioned."] : trouble ? [title(refusal.status), refusal.message] : ["", ""];
  const caption = answer && !trouble ? answer.predictions[0].caption : "";
  write("caption", caption);
  write("progress", progress(job, behind));
  element("progress").hidden = !active;
  write("trouble-title", wrong);
  write("trouble-reason", reason);
  element("trouble").className = `banner ${state === "failed" ? "bad" : "warn"}`;
  element("trouble").hidden = !trouble;
  if (trouble || state === "done") write("spoken", trouble ? `${wrong}. ${reason}` : caption); // read aloud
  element("copy").hidden = state !== "done";
  element("retry").hidden = !trouble || (state === "failed" && FINAL.includes(refusal.status));
  write("retry", state === "paused" ? "Try now" : "Try again");
  element("shrink").hidden = !(state === "failed" && refusal.status === 413 && job.sent === null && job.width);
  element("stop").hidden = !active;
  write("stop", behind ? "Stop all" : "Stop");
  element("details").hidden = answer === null || trouble;
  if (state === "done") showDetails(job);
}

/** Nothing is shown any more. */
export function clearPicture() {
  write("spoken", "");
  element("result").hidden = element("figure").hidden = true;
  element("zone").hidden = false;
  URL.revokeObjectURL(source.url);
  source = { file: null, url: "" };
}

/**
 * An item of a list of pictures.
 * @param {string} name
 * @param {() => void} chosen
 * @returns {HTMLLIElement}
 */
export function tile(name, chosen) {
  const item = element("tile").content.firstElementChild.cloneNode(true);
  const button = item.querySelector("button");
  button.title = name;
  button.addEventListener("click", chosen);
  item.querySelector(".words").textContent = name;
  return item;
}

/**
 * A picture's item in the list of all.
 * @param {Job} job
 * @param {boolean} current whether it is the one that is shown
 */
export function mark(job, current) {
  const button = job.tile.querySelector("button");
  const words = { waiting: "waiting", working: "captioning…", paused: "waiting for the service", stopped: "stopped" };
  const said = job.state === "failed" ? title(job.refusal.status) : words[job.state];
  job.tile.querySelector(".words").textContent = said ?? job.answer.predictions[0].caption;
  button.dataset.state = job.state;
  button.setAttribute("aria-current", String(current));
  const image = job.tile.querySelector("img");
  if (job.small && image.src !== job.small) image.src = job.small;
}

/** @param {Job} job */
function showPicture(job) {
  const picture = element("picture");
  if (source.file !== job.file) {
    URL.revokeObjectURL(source.url);
    source = { file: job.file, url: URL.createObjectURL(job.file) };
    element("zone").hidden = true;
    element("figure").hidden = picture.hidden = false;
    element("no-preview").hidden = true;
    picture.onload = () => {
      picture.parentElement.style.setProperty("--ratio", String(picture.naturalWidth / picture.naturalHeight));
    };
    picture.onerror = () => {
      picture.hidden = true;
      element("no-preview").hidden = false;
    };
    picture.src = source.url;
    picture.alt = `Your picture ${job.file.name}`;
    write("no-preview", `This browser cannot show ${job.file.name}`);
  }
  const told = [job.file.name, job.width && `${job.width} × ${job.height}`, bytes(job.file.size)];
  if (job.sent) told.push(`sent as a copy of ${bytes(job.sent.size)} that this browser made`);
  write("about-picture", told.filter(Boolean).join(" · "));
}

/**
 * @param {Job} job
 * @param {number} behind
 */
function progress({ state, left }, behind) {
  if (state === "waiting") return "Waiting for its turn…";
  if (state === "working") return behind ? `Captioning… ${counted(behind, "picture")} waiting` : "Captioning…";
  return state === "paused" ? `Sending it again in ${left} s` : "";
}

/** @param {Job} job one that has an answer */
function showDetails({ file, answer: { json, predictions, time, roundTrip } }) {
  const best = predictions[0].probability || 1;
  const rows = predictions.map(({ caption, probability }) => {
    const row = element("prediction").content.firstElementChild.cloneNode(true);
    row.querySelector(".text").textContent = caption;
    const number = row.querySelector(".probability");
    number.textContent = odds(probability);
    number.title = exactly(probability);
    row.querySelector(".share").style.setProperty("--share", String(probability / best));
    return row;
  });
  element("predictions").replaceChildren(...rows);

  const stages = STAGES.filter(([key]) => key in time).map(([key, name]) => [name, time[key]]);
  const rest = roundTrip - stages.reduce((sum, [, ms]) => sum + ms, 0);
  stages.push(["the rest", Math.max(0, rest)]);
  write("round-trip", `${duration(roundTrip)} from here and back`);
  element("time-bar").replaceChildren(
    ...stages.map(([, ms]) => {
      const part = document.createElement("span");
      part.style.setProperty("flex-grow", String(ms));
      return part;
    }),
  );
  element("times").replaceChildren(
    ...stages.map(([name, ms]) => {
      const fact = document.createElement("div");
      fact.append(document.createElement("dt"), document.createElement("dd"));
      fact.firstChild.textContent = name;
      fact.lastChild.textContent = duration(ms);
      return fact;
    }),
  );

  write("answer-of", `, as of ${file.name}`);
  write("answer", JSON.stringify(json, null, 2));
}

/**
 * Text that is not written again where it stands already, so that it is not read aloud again.
 * @param {string} id
 * @param {string} text
 */
function write(id, text) {
  if (element(id).textContent !== text) element(id).textContent = text;
}
