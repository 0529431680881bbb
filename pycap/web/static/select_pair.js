/** One pair on the page: the image, the caption that is chosen among the model's or written over one, and the field for that. */

/**
 * @typedef {{rank: number, caption: string, logprob: number | null}} Beam
 * @typedef {{position: number, file_name: string, image: string, captions: Beam[],
 *   decision: "accept" | "reject" | "skip" | null, chosen: {rank: number, caption: string, edited: boolean} | null}} Pair
 */

export const KEYS = 5; // captions that have a key

export const DECIDED = {accept: "accepted", reject: "rejected", skip: "skipped"};
export const KIND = {accept: "good", reject: "bad", skip: "warn"}; // the stylesheet's names

const $ = (id) => document.getElementById(id);

/** What a reader knows the image by; the folders before it are in the results and the picks. @param {Pair} pair */
export const named = (pair) => pair.file_name.slice(pair.file_name.lastIndexOf("/") + 1);

/** What an image shows, in words. @param {Pair} pair */
export const alternative = (pair, caption = pair.captions[0].caption) => `${caption} (${named(pair)})`;

/** An image and the pair that it shows; what cannot be shown has the class `missing`. @param {Pair} pair */
function picture(pair) {
  const image = new Image();
  image.decoding = "async";
  image.draggable = false;
  image.addEventListener("error", () => image.classList.add("missing"));
  image.addEventListener("load", () => image.classList.remove("missing"));
  image.src = pair.image;
  return image;
}

export class PairView {
  /** @type {Pair | null} */
  pair = null;
  /** @type {Map<number, HTMLImageElement>} images by position: the one shown, and those after it, loaded ahead */
  #images = new Map();
  /** @type {Map<number, string>} what was written over the model's captions, by rank */
  #written = new Map();
  #rank = 1;
  /** What had the focus before the field. @type {Element | null} */
  #opener = null;

  /** @param {(text: string) => void} say tells the reader */
  constructor(say) {
    this.say = say;
    $("beams").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) this.choose(Number(button.dataset.rank));
    });
    $("editor").addEventListener("submit", (event) => {
      event.preventDefault();
      this.keep();
    });
    $("leave").addEventListener("click", () => this.leave());
    $("text").addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") {
        event.preventDefault();
        this.keep();
      } else if (event.key === "Escape") this.leave();
    });
    $("text").addEventListener("input", () => ($("editing").textContent = ""));
  }

  get editing() {
    return !$("editor").hidden;
  }

  /** What a decision on this pair says of the caption: the beam's rank, and the text where it was written over. */
  get choice() {
    return {rank: this.#rank, caption: this.#written.get(this.#rank) ?? null};
  }

  /** @param {Pair} pair */
  show(pair) {
    this.#close();
    this.pair = pair;
    this.#written.clear();
    this.#rank = pair.chosen?.rank ?? pair.captions[0].rank;
    if (pair.chosen?.edited) this.#written.set(this.#rank, pair.chosen.caption);
    $("name").textContent = named(pair);
    $("name").title = pair.file_name;
    $("before").hidden = !pair.decision;
    $("before").className = `badge ${KIND[pair.decision] ?? ""}`;
    $("before").textContent = DECIDED[pair.decision] ?? "";
    const image = this.#image(pair);
    image.fetchPriority = "high";
    $("picture").replaceChildren(image);
    $("beams").replaceChildren(...pair.captions.slice(0, KEYS).map(line));
    this.#words();
  }

  /** Show no pair: the next one is not known yet. */
  clear() {
    this.#close();
    this.pair = null;
    for (const id of ["name", "caption", "picture", "beams"]) $(id).replaceChildren();
    $("before").hidden = true;
  }

  /** Load the images of these pairs ahead, and forget the others. @param {Pair[]} pairs */
  prepare(pairs) {
    const wanted = new Set([this.pair?.position, ...pairs.map((pair) => pair.position)]);
    for (const position of this.#images.keys()) if (!wanted.has(position)) this.#images.delete(position);
    for (const pair of pairs) this.#image(pair);
  }

  /** Ask once more for images that did not come: the server was away. */
  retry() {
    for (const image of this.#images.values()) if (image.classList.contains("missing")) image.src = image.src;
  }

  /** Choose a caption; once more, and what was written over it makes room for the model's own words. @param {number} rank */
  choose(rank) {
    if (!this.pair?.captions.some((beam) => beam.rank === rank)) return;
    this.#close();
    if (rank === this.#rank && this.#written.delete(rank)) this.say("The model’s own words again");
    this.#rank = rank;
    this.#words();
  }

  edit() {
    this.#opener = document.activeElement;
    $("editor").hidden = false;
    $("caption").hidden = true;
    $("text").value = this.#caption();
    $("editing").textContent = "";
    $("text").focus();
    $("text").select();
  }

  /** Take the text of the field; false where there is none to take, and the field stays. */
  keep() {
    const text = $("text").value.replace(/\s+/g, " ").trim();
    if (!/[\p{L}\p{N}]/u.test(text)) {
      $("editing").textContent = "A caption has words: write some, or leave it as it was.";
      this.say("A caption has words");
      $("text").focus();
      return false;
    }
    if (text === this.#beam().caption) this.#written.delete(this.#rank);
    else this.#written.set(this.#rank, text);
    this.#close();
    this.#words();
    return true;
  }

  leave() {
    this.#close();
  }

  #close() {
    if (!this.editing) return;
    const within = $("editor").contains(document.activeElement);
    $("editor").hidden = true;
    $("caption").hidden = false;
    if (within) this.#opener.focus();
    if ($("editor").contains(document.activeElement)) document.activeElement.blur(); // the opener is the page, or gone from sight
    this.#opener = null;
  }

  #beam() {
    return this.pair.captions.find((beam) => beam.rank === this.#rank) ?? this.pair.captions[0];
  }

  #caption() {
    return this.#written.get(this.#rank) ?? this.#beam().caption;
  }

  /** @param {Pair} pair */
  #image(pair) {
    let image = this.#images.get(pair.position);
    if (!image) this.#images.set(pair.position, (image = picture(pair)));
    image.alt = alternative(pair);
    return image;
  }

  #words() {
    const caption = this.#caption();
    $("caption").textContent = caption;
    $("caption").classList.toggle("long", caption.length > 160);
    $("picture").firstElementChild.alt = alternative(this.pair, caption);
    for (const button of $("beams").querySelectorAll("button")) {
      const rank = Number(button.dataset.rank);
      const beam = this.pair.captions.find((other) => other.rank === rank);
      const [, words, probability] = button.children;
      button.setAttribute("aria-pressed", rank === this.#rank);
      words.textContent = this.#written.get(rank) ?? beam.caption;
      probability.textContent = this.#written.has(rank) ? "edited" : (beam.logprob?.toFixed(1) ?? "");
    }
  }
}

/** A caption's line in the list, its words still to come. @param {Beam} beam */
function line(beam, index) {
  const button = document.createElement("button");
  button.dataset.rank = beam.rank;
  button.setAttribute("aria-keyshortcuts", index + 1);
  const [key, words, probability] = ["kbd", "span", "small"].map((name) => document.createElement(name));
  key.textContent = index + 1;
  probability.title = "log-probability";
  button.append(key, words, probability);
  const item = document.createElement("li");
  item.append(button);
  return item;
}
