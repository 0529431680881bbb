/** The grid: thumbnails of all pairs with what was decided on them, a page at a time, by kind; the arrow keys move. */

import {DECIDED, KIND, alternative} from "./select_pair.js";

/** @typedef {import("./select_pair.js").Pair} Pair */

const PAGE = 60; // thumbnails
const THUMBNAIL = 320; // px
const KINDS = {all: "All", accept: "Accepted", reject: "Rejected", skip: "Skipped", open: "Open"};
const SIGN = {accept: "✓", reject: "✗", skip: "↷"};

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");

export class Grid {
  #kind = "all";
  #start = 0;
  #count = 0;
  /** The cell that has the focus, or gets it when the grid is shown. */
  #at = 0;
  /** @type {Pair[]} */
  #pairs = [];

  /**
   * @param {import("./select_line.js").Line} line
   * @param {(pair: Pair) => void} open is called with the pair to be shown alone
   */
  constructor(line, open) {
    this.line = line;
    for (const [kind, name] of Object.entries(KINDS)) {
      const button = document.createElement("button");
      button.dataset.kind = kind;
      button.append(name, " ", document.createElement("small"));
      button.addEventListener("click", () => this.#turn(0, kind));
      $("show").append(button);
    }
    $("earlier").addEventListener("click", () => this.#turn(this.#start - PAGE));
    $("later").addEventListener("click", () => this.#turn(this.#start + PAGE));
    $("pages").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#turn((Math.trunc(Number($("page").value) || 1) - 1) * PAGE);
    });
    $("cells").addEventListener("click", (event) => {
      const cell = event.target.closest("button");
      if (!cell) return;
      this.#at = Number(cell.dataset.index);
      open(this.#pairs[this.#at]);
    });
    $("cells").addEventListener("focusin", (event) => this.#point(Number(event.target.dataset.index)));
    $("cells").addEventListener("keydown", (event) => this.#key(event));
  }

  /** Show the grid as it is on the server, where it was left. */
  show() {
    this.#turn(this.#start);
  }

  /** How many there are of each kind. */
  count({total, accepted, rejected, skipped}) {
    const counts = {all: total, accept: accepted, reject: rejected, skip: skipped};
    counts.open = total - accepted - rejected - skipped;
    for (const button of $("show").children) button.lastElementChild.textContent = number.format(counts[button.dataset.kind]);
  }

  /** Show the page that begins at `start`, with the focus on cell `at`. */
  #turn(start, kind = this.#kind, at = start === this.#start && kind === this.#kind ? this.#at : 0) {
    if (start > 0 && start >= this.#count && kind === this.#kind) start = this.#last();
    [this.#start, this.#kind, this.#at] = [Math.max(0, start), kind, at];
    const asked = `${this.#start} ${kind}`;
    this.line.ask(`/api/pairs?start=${this.#start}&count=${PAGE}&show=${kind}`, null, ({status, body}) => {
      if (status !== 200 || asked !== `${this.#start} ${this.#kind}`) return; // the reader has gone on meanwhile
      this.#count = body.count;
      if (!body.pairs.length && body.count) this.#turn(this.#last());
      else this.#fill(body.pairs);
    });
  }

  #last() {
    return Math.max(0, Math.ceil(this.#count / PAGE) - 1) * PAGE;
  }

  /** @param {Pair[]} pairs */
  #fill(pairs) {
    this.#pairs = pairs;
    for (const button of $("show").children) button.setAttribute("aria-pressed", button.dataset.kind === this.#kind);
    $("page").value = this.#start / PAGE + 1;
    $("of").textContent = `of ${number.format(this.#last() / PAGE + 1)}`;
    $("earlier").disabled = this.#start === 0;
    $("later").disabled = this.#start >= this.#last();
    $("nothing").hidden = pairs.length > 0;
    const within = $("cells").contains(document.activeElement) || document.activeElement === document.body;
    $("cells").replaceChildren(...pairs.map(cell));
    if (pairs.length) this.#point(Math.min(this.#at, pairs.length - 1), within && !$("grid").hidden);
  }

  /** One cell is reached by the Tab key; the arrow keys move it. */
  #point(index, focus = false) {
    this.#at = index;
    for (const [other, item] of [...$("cells").children].entries()) item.firstElementChild.tabIndex = other === index ? 0 : -1;
    if (focus) $("cells").children[index].firstElementChild.focus();
  }

  #key(event) {
    const columns = getComputedStyle($("cells")).gridTemplateColumns.split(" ").length;
    const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -Infinity, End: Infinity};
    const turns = {PageUp: -PAGE, PageDown: PAGE};
    if (event.altKey || event.ctrlKey || event.metaKey || !(event.key in steps || event.key in turns)) return;
    event.preventDefault();
    event.stopPropagation();
    const last = this.#pairs.length - 1;
    const to = this.#at + (steps[event.key] ?? 0);
    const [before, after] = [this.#start > 0, this.#start < this.#last()];
    if (event.key in turns) {
      if (turns[event.key] < 0 ? before : after) this.#turn(this.#start + turns[event.key], this.#kind, this.#at);
    } else if (Number.isFinite(to) && to < 0 && before) this.#turn(this.#start - PAGE, this.#kind, PAGE + to);
    else if (Number.isFinite(to) && to > last && after) this.#turn(this.#start + PAGE, this.#kind, to - PAGE);
    else if (Math.abs(steps[event.key]) !== columns || (to >= 0 && to <= last)) this.#point(Math.max(0, Math.min(to, last)), true);
  }
}

/** @param {Pair} pair */
function cell(pair, index) {
  const caption = pair.chosen?.caption ?? pair.captions[0].caption;
  const [item, button, image, badge, words] = ["li", "button", "img", "span", "span"].map((name) => document.createElement(name));
  button.className = "tile";
  button.dataset.index = index;
  button.dataset.position = pair.position;
  image.loading = "lazy";
  image.src = `${pair.image}?side=${THUMBNAIL}`;
  image.alt = alternative(pair, caption);
  button.title = pair.file_name;
  image.addEventListener("error", () => image.classList.add("missing"));
  if (pair.decision) {
    badge.className = `badge ${KIND[pair.decision]}`;
    badge.textContent = `${SIGN[pair.decision]} ${DECIDED[pair.decision]}`;
  }
  words.className = "words";
  words.textContent = caption;
  words.setAttribute("aria-hidden", true); // the image's alternative text says it
  button.append(image, badge, words);
  item.append(button);
  return item;
}
