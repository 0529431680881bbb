/** Picking pairs: which pair comes next, what is decided on it, how it is undone; the keys; what is said of how it stands. */

import {copy} from "./copy.js";
import {Grid} from "./select_grid.js";
import {keys} from "./select_keys.js";
import {Line} from "./select_line.js";
import {DECIDED, KEYS, PairView, named} from "./select_pair.js";
import {swipes} from "./select_touch.js";

/**
 * @typedef {import("./select_pair.js").Pair} Pair
 * @typedef {{results: string, picks: string, target: number, accepted: number, rejected: number, skipped: number, total: number,
 *   per_minute: number, order: string, command: string, latest: {position: number, decided_at: string} | null}} State
 * @typedef {{pair: Pair, written: Pair, decided_at: string | null}} Decision  a pair as it was before this tab decided it, the
 *   same with the caption that was written for it, and when it was decided
 */

const AHEAD = 10; // images loaded ahead
const KNOWN = 60; // pairs known ahead, after asking for some: more than are typed before an answer comes
const SAID = 5000; // ms that what was said stays over the page
const UNSAVED = "pycap select: unsaved"; // what a reload must not lose
const MAINS = ["one", "end", "grid"];

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en");
const still = matchMedia("(prefers-reduced-motion: reduce)");

/** @type {State | null} */
let state = null;
/** @type {Pair[]} the pair in hand, and those after it */
let queue = [];
/** @type {Pair | null} a pair from the grid, in hand instead */
let opened = null;
/** @type {Decision[]} the latest last */
const past = [];
/** @type {Set<number> | null} positions of skipped pairs that were passed once more; null before the reader looks at them again */
let passed = null;
let asking = null; // for more pairs: the question
let troubled = false; // the server did not answer
let undoing = false; // a decision whose pair this tab does not know
let silence = 0; // the timer that takes away what was said
let celebrated = false; // the target is reached, and the reader has been told

const line = new Line(showLine);
const view = new PairView(say);
const grid = new Grid(line, open);

// -- what is said ------------------------------------------------------------------------------------------------------

/** Say something in passing, to who sees and to who hears the page. */
function say(text) {
  $("said").textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => $("said").replaceChildren(), SAID);
  if (!still.matches) $("said").animate([{opacity: 0, translate: "0 0.5rem"}, {opacity: 1, translate: "0"}], 120);
}

/** @param {State} next */
function showState(next) {
  state = next;
  $("accepted").textContent = number.format(state.accepted);
  $("target").textContent = number.format(state.target);
  $("progress").max = Math.max(1, state.target);
  $("progress").value = Math.min(state.accepted, state.target);
  $("rate").textContent = state.per_minute ? `${Math.round(state.per_minute)} a minute` : "";
  document.title = `${state.accepted} / ${state.target} · pycap select`;
  $("command").textContent = state.command;
  const reached = state.target > 0 && state.accepted >= state.target;
  if (reached && !celebrated) {
    $("reached").hidden = false;
    $("reached-what").textContent = `${number.format(state.accepted)} pairs accepted: enough to train on.`;
  }
  if (!reached) $("reached").hidden = true;
  celebrated = reached;
  grid.count(state);
  sumUp();
}

function showLine() {
  const {trouble, unsaved} = line;
  $("unsaved").textContent = unsaved.length ? `${unsaved.length} not saved yet` : "";
  $("banner").hidden = !trouble;
  const kept = unsaved.length === 1 ? "1 decision is" : `${unsaved.length} decisions are`;
  const text = `${trouble}. ${unsaved.length ? `${kept} kept here. ` : ""}Picking goes on by itself as soon as it does.`;
  if ($("banner").textContent !== text) $("banner").textContent = text; // said once, not at each try
  if (troubled && !trouble) view.retry();
  troubled = Boolean(trouble);
  if (state) {
    if (unsaved.length) sessionStorage.setItem(UNSAVED, JSON.stringify({results: state.results, picks: state.picks, unsaved}));
    else sessionStorage.removeItem(UNSAVED);
  }
}

/** @param {"one" | "end" | "grid"} name */
function turnTo(name) {
  for (const id of MAINS) $(id).hidden = id !== name;
  $("to-grid").setAttribute("aria-pressed", name === "grid");
}

const inGrid = () => !$("grid").hidden;

// -- which pair comes next ---------------------------------------------------------------------------------------------

/** Show the pair in hand, and see to it that there are enough after it. */
function show() {
  if (!opened && queue.length <= KNOWN / 2) more();
  showPair();
}

/** Show the pair in hand, or that there is none. */
function showPair() {
  const pair = opened ?? queue[0];
  $("back").hidden = !pair?.decision;
  if (pair && (opened || passed || pair.decision !== "skip")) {
    turnTo("one");
    if (view.pair !== pair) view.show(pair);
    view.prepare(queue.slice(0, AHEAD + 1));
  } else if (!asking) showEnd();
  else view.clear();
}

function showEnd() {
  view.clear();
  turnTo("end");
  sumUp();
}

/** What came of all pairs. */
function sumUp() {
  const {total, accepted, rejected, skipped} = state;
  const count = (of, what) => `${number.format(of)} ${what}`;
  const parts = [count(accepted, "accepted"), count(rejected, "rejected"), count(skipped, "skipped")];
  $("end-what").textContent = `Of ${count(total, total === 1 ? "pair" : "pairs")}: ${parts.join(", ")}.`;
  $("again").hidden = !queue.length && !skipped;
  $("again").textContent = `Look at the skipped ${skipped === 1 ? "one" : "ones"} again`;
}

/** Ask for pairs after the last that is known; `afresh`: after the one in hand, which alone is kept, as another tab decides too. */
function more(afresh = false) {
  if (asking && !afresh) return;
  const mine = (asking = {});
  const after = (afresh ? queue[0] : queue.at(-1))?.position ?? -1;
  line.ask(`/api/next?after=${after}&count=${KNOWN + (afresh ? 1 : queue.length)}`, null, ({status, body}) => {
    if (asking !== mine) return; // another question was asked since
    asking = null;
    if (status !== 200) return say(body.message ?? `The server refused to name pairs (status ${status})`);
    if (afresh) queue = queue.slice(0, 1);
    // Those in the line were decided after the question, and the answer wraps around to those that are known.
    const known = new Set([...queue.map((pair) => pair.position), ...line.unsaved.map(({body}) => body.position)]);
    queue.push(...body.pairs.filter((pair) => !known.has(pair.position) && !passed?.has(pair.position)));
    if (!queue.length && line.unsaved.length) more(); // what is skipped now was open when this was asked
    if (!inGrid()) showPair();
  });
}

// -- deciding ----------------------------------------------------------------------------------------------------------

/** Whether a decision can be taken now; says so where it cannot. */
function ready() {
  if (line.trouble) say(`Not taken: ${line.trouble.toLowerCase()}`);
  return !line.trouble && !undoing;
}

/** @param {"accept" | "reject" | "skip"} decision */
function decide(decision) {
  const pair = view.pair;
  if (!pair || !ready()) return;
  if (view.editing) {
    if (decision !== "accept") view.leave();
    else if (!view.keep()) return;
  }
  const {rank, caption: own} = view.choice;
  const caption = decision === "accept" ? own : null;
  const from = opened;
  past.push({pair, written: caption === null ? pair : {...pair, chosen: {rank, caption, edited: true}}, decided_at: null});
  send({
    position: pair.position,
    file_name: pair.file_name, // the server refuses it where another image stands there now
    decision,
    rank,
    caption,
    again: pair.decision !== null,
  });
  if (decision === "skip") passed?.add(pair.position);
  say(`${DECIDED[decision][0].toUpperCase()}${DECIDED[decision].slice(1)}: ${named(pair)}`);
  flash(decision);
  queue = queue.filter((other) => other.position !== pair.position);
  opened = null;
  view.pair = null;
  if (from) toGrid();
  else show();
}

/** Write a decision, at the end of the line. */
function send(body) {
  line.ask("/api/decide", () => body, (answer) => decided(body, answer));
}

/** @param {import("./select_line.js").Answer} answer */
function decided({position}, {status, body}) {
  if (body.state) showState(body.state);
  const at = past.findLastIndex((decision) => decision.pair.position === position);
  if (status === 200) {
    if (at >= 0) past[at].decided_at = body.pair.decided_at;
    return;
  }
  const [mine] = at < 0 ? [] : past.splice(at, 1);
  line.drop((item) => item.path === "/api/undo" && item.body().position === position); // there is nothing of ours to undo
  if (status !== 409) {
    if (mine) putBack(mine.written);
    say(`Not taken: ${body.message ?? `the server refused it (status ${status})`}`);
  } else if (!body.pair) {
    startAnew("Not taken: the list of pairs is another one now");
  } else {
    say(`Another tab has ${DECIDED[body.pair.decision] ?? "decided"} ${named(body.pair)}: that stays`);
    if (view.pair?.position === position) putBack(body.pair);
    more(true);
  }
}

function undo() {
  if (!state || !ready()) return;
  if (view.editing) view.leave();
  const last = past.pop();
  if (last) {
    putBack(last.pair.decision ? last.pair : last.written); // an open one with what was written: to correct it is why
    say(`Taken back: ${named(last.pair)}`);
  } else if (!line.unsaved.length && !state.latest) return say("There is nothing to undo");
  else undoing = true;
  // Which decision it takes back is known when it is sent. Asked twice, it does not take back the one before that as well.
  const body = () => (last ? {position: last.pair.position, decided_at: last.decided_at} : {...state.latest});
  line.ask("/api/undo", body, (answer) => undone(answer, !last));
}

/** @param {import("./select_line.js").Answer} answer @param {boolean} unknown the pair, until now */
function undone({body: {state: now, pair, error}}, unknown) {
  if (unknown) undoing = false;
  if (now) showState(now);
  if (!pair) return say(error ?? "There is nothing to undo");
  // Else it is before the reader already, unless it was decided twice, and the first decision stands again.
  if (unknown || (view.pair?.position === pair.position && view.pair.decision !== pair.decision)) putBack(pair);
  if (unknown) say(`Taken back: ${named(pair)}`);
}

/** Take a pair in hand again. @param {Pair} pair */
function putBack(pair) {
  opened = null;
  view.pair = null;
  passed?.delete(pair.position);
  if (pair.decision === "skip") passed ??= new Set();
  queue = [pair, ...queue.filter((other) => other.position !== pair.position)];
  show();
}

/** Go on without deciding on a pair that is decided: one from the grid, or one whose second decision was undone. */
function goBack() {
  if (!view.pair?.decision) return;
  if (opened) return toGrid();
  passed?.add(view.pair.position);
  queue.shift();
  show();
}

/** A colour that passes over the image's edge. */
function flash(decision) {
  $("stage").dataset.decided = decision;
  if (still.matches) return;
  const edge = getComputedStyle($("stage")).getPropertyValue("--decided");
  $("stage").animate([{boxShadow: `inset 0 0 0 6px ${edge}`}, {boxShadow: "inset 0 0 0 6px transparent"}], 350);
}

// -- the grid, the help, the end -----------------------------------------------------------------------------------------

function toGrid() {
  if (!state) return;
  opened = null;
  view.pair = null;
  turnTo("grid");
  grid.show();
}

function fromGrid() {
  view.pair = null;
  turnTo("one");
  show();
}

/** @param {Pair} pair */
function open(pair) {
  opened = pair;
  show();
}

function reviewSkipped() {
  passed = new Set();
  show();
  if (!queue.length) more();
}

function startAnew(why) {
  queue = [];
  past.length = 0;
  opened = null;
  view.clear();
  say(why);
  more(true);
}

async function copyCommand() {
  await copy($("command"));
  say("Copied");
}

// -- what the reader does ------------------------------------------------------------------------------------------------

const DOES = {
  a: () => decide("accept"),
  ArrowRight: () => decide("accept"),
  x: () => decide("reject"),
  ArrowLeft: () => decide("reject"),
  " ": () => decide("skip"),
  e: () => view.pair && !view.editing && view.edit(),
  z: undo,
  g: () => (inGrid() ? fromGrid() : toGrid()),
  "?": () => $("help").showModal(),
  Escape: () => (inGrid() ? fromGrid() : goBack()),
};

keys(DOES, (digit) => digit <= KEYS && view.choose(digit), $("help"));

const CLICKS = {
  accept: DOES.a,
  reject: DOES.x,
  skip: DOES[" "],
  edit: DOES.e,
  undo,
  back: goBack,
  "to-grid": DOES.g,
  "to-help": DOES["?"],
  "close-help": () => $("help").close(),
  "end-grid": toGrid,
  again: reviewSkipped,
  copy: copyCommand,
  "go-on": () => ($("reached").hidden = true),
};
for (const [id, does] of Object.entries(CLICKS)) $(id).addEventListener("click", does);

swipes(
  $("stage"),
  (meant) => {
    $("stage").dataset.meant = meant ?? "";
    $("swiped").textContent = meant ? {accept: "Accept", reject: "Reject", skip: "Skip"}[meant] : "";
  },
  decide,
);

addEventListener("beforeunload", (event) => line.unsaved.length && event.preventDefault());
// Another tab may have decided meanwhile what this one has in hand.
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState !== "visible" || !state || view.editing) return;
  line.ask("/api/state", null, ({status, body}) => {
    if (status !== 200 || sameDecisions(body)) return;
    showState(body);
    if (view.editing) return;
    queue = [];
    if (!opened) view.clear();
    more(true);
  });
});

/** @param {State} other */
function sameDecisions(other) {
  return ["results", "picks", "accepted", "rejected", "skipped"].every((name) => state[name] === other[name]);
}

// -- the beginning -------------------------------------------------------------------------------------------------------

line.ask("/api/state", null, ({status, body}) => {
  if (status !== 200) return say(body.message ?? `The server does not say how it stands (status ${status})`);
  const left = JSON.parse(sessionStorage.getItem(UNSAVED) ?? "null");
  showState(body);
  if (left?.results === state.results && left?.picks === state.picks) {
    for (const {path, body} of left.unsaved) {
      if (path === "/api/decide") send(body);
      else line.ask(path, () => body, (answer) => undone(answer, false));
    }
  }
  more();
});
