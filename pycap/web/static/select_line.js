/** What is asked of the server: in order, one at a time, each answered before the next is sent, and again until it is. */

const SLOW = 1500; // ms without an answer after which the reader is told
const PATIENCE = 8000; // ms without an answer after which the same is asked again
const LONGEST_PAUSE = 2000; // ms between two tries

/**
 * @typedef {{status: number, body: any}} Answer
 * @typedef {{path: string, body?: () => object, done: (answer: Answer) => void}} Item
 *   body makes the body of a POST when it is sent; without one, it is a GET
 */

/** @returns {Promise<Answer>} any status below 500; else, and without an answer, an Error that says why */
async function ask({path, body}) {
  const post = body && {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body())};
  let response, answer;
  try {
    response = await fetch(path, {...post, signal: AbortSignal.timeout(PATIENCE)});
    answer = await response.json().catch((error) => {
      if (response.ok) throw error; // cut short: the server was ended as it answered
      return {};
    });
  } catch (error) {
    throw new Error("The server does not answer", {cause: error});
  }
  if (response.status >= 500) throw new Error(answer.message ?? `The server failed (status ${response.status})`);
  return {status: response.status, body: answer};
}

export class Line {
  /** @type {Item[]} */
  #items = [];
  #running = false;

  /** What keeps the first item from being answered, "" where nothing does. */
  trouble = "";

  /** @param {() => void} changed is called when `unsaved` or `trouble` may have changed */
  constructor(changed) {
    this.changed = changed;
  }

  /** The bodies of what is to be written and has not been confirmed, in order. */
  get unsaved() {
    return this.#items.filter((item) => item.body).map(({path, body}) => ({path, body: body()}));
  }

  /** Take what is like this out of the line. To be called while an answer is told: nothing is on its way then. */
  drop(/** @type {(item: Item) => boolean} */ like) {
    this.#items = this.#items.filter((item) => !like(item));
  }

  /** Ask at the end of the line. @param {Item["done"]} done is called with the answer, whose status is below 500 */
  ask(path, body, done) {
    this.#items.push({path, body, done});
    this.changed();
    if (!this.#running) this.#run();
  }

  async #run() {
    this.#running = true;
    while (this.#items.length) {
      const answer = await this.#answer(this.#items[0]);
      const item = this.#items.shift();
      this.trouble = "";
      try {
        item.done(answer);
      } catch (error) {
        reportError(error); // what comes after it in the line is asked all the same
      }
      this.changed();
    }
    this.#running = false;
  }

  /** @param {Item} item */
  async #answer(item) {
    for (let pause = 200; ; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
      const slow = setTimeout(() => this.#tell("The server is slow to answer"), SLOW);
      try {
        return await ask(item);
      } catch (error) {
        this.#tell(error.message);
      } finally {
        clearTimeout(slow);
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }

  #tell(trouble) {
    this.trouble = trouble;
    this.changed();
  }
}
