/** Talking to the service: one picture, one answer. What is refused only for now is sent again, and the page is told. */

/**
 * @typedef {{index: string, caption: string, probability: number}} Prediction
 * @typedef {{json: object, predictions: Prediction[], time: Record<string, number>, roundTrip: number}} Answer
 */

const ATTEMPTS = 20; // before somebody is asked to go on by hand
const UNREACHABLE_S = 3;
const LONGEST_S = 60;

/** Why there is no caption. `status` is that of HTTP, or what `title` knows besides; `wait`: seconds, null where waiting does
 * not help. */
export class Refusal extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {number | null} wait
   */
  constructor(status, message, wait = null) {
    super(message);
    this.status = status;
    this.wait = wait;
  }
}

/**
 * An address of the service; relative, so that it may stand below a path of a reverse proxy.
 * @param {string} path
 */
export function address(path) {
  return new URL(path.replace(/^\//, ""), document.baseURI).href;
}

/** @param {string} path */
export async function get(path) {
  const response = await fetch(address(path));
  if (!response.ok) throw new Refusal(response.status, await reason(response));
  return response;
}

/**
 * Caption a picture; sent again for as long as the service is busy or away.
 * @param {File} file
 * @param {number} beamSize
 * @param {AbortSignal} signal
 * @param {(refusal: Refusal, attempt: number) => Promise<void>} pause waits before the next attempt
 * @returns {Promise<Answer>}
 */
export async function ask(file, beamSize, signal, pause) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await send(file, beamSize, signal);
    } catch (error) {
      if (!(error instanceof Refusal) || error.wait === null || attempt === ATTEMPTS) throw error;
      await pause(error, attempt);
    }
  }
}

/**
 * @param {File} file
 * @param {number} beamSize
 * @param {AbortSignal} signal
 * @returns {Promise<Answer>}
 */
async function send(file, beamSize, signal) {
  const form = new FormData();
  form.append("beam_size", String(beamSize)); // before the image, so that it is known when that has come
  form.append("image", file, file.name);
  const began = performance.now();
  let response, json;
  try {
    response = await fetch(address("model/predict"), { method: "POST", body: form, signal });
    if (response.ok) json = await response.json(); // one that is cut short is none
  } catch (error) {
    if (signal.aborted) throw error;
    await readable(file);
    throw new Refusal(0, "It may have been stopped, or the network is down.", UNREACHABLE_S);
  }
  if (!response.ok) throw new Refusal(response.status, await reason(response), retryAfter(response));
  return { json, predictions: json.predictions, time: json.time ?? {}, roundTrip: performance.now() - began };
}

/**
 * A file that was removed or changed since it was chosen fails as the network does.
 * @param {File} file
 */
async function readable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch (error) {
    throw new Refusal(-2, `${file.name} was moved or changed since it was chosen (${error.name}). Choose it again.`);
  }
}

/** @param {Response} response an error's */
async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).message ?? text;
  } catch {
    return response.statusText || "No reason was given; something between this page and the service may have refused it.";
  }
}

/**
 * Seconds to wait; null where asking again would not help: the service says when it does.
 * @param {Response} response
 */
function retryAfter(response) {
  const told = response.headers.get("Retry-After");
  if (told === null) return response.status === 502 ? UNREACHABLE_S : null; // 502: a proxy's, whose service is away
  const seconds = /^\d+$/.test(told) ? Number(told) : (Date.parse(told) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 1), LONGEST_S) : UNREACHABLE_S;
}
