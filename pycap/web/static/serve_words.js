/** Numbers and refusals in words. */

const NB = "\u00a0"; // a space at which no line is broken
const SCALES = [
  [1e12, "trillion"],
  [1e9, "billion"],
  [1e6, "million"],
];
const two = new Intl.NumberFormat("en", { maximumSignificantDigits: 2, minimumSignificantDigits: 2 });
const three = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

/**
 * A probability that can be read: "34 %", "0.34 %", "1 in 3.3 million", "1 in 10^17".
 * @param {number} p
 */
export function odds(p) {
  if (p >= 0.9995) return `over 99.9${NB}%`;
  if (p >= 0.001) return `${(p >= 0.1 ? three : two).format(p * 100)}${NB}%`;
  if (!(p > 0)) return `under 1 in 10${raised(300)}`;
  const among = 1 / p;
  // Two digits: from 995 million on it is 1.0 billion, not 1,000 million.
  if (among >= 0.995e15) return `1 in 10${raised(Math.round(Math.log10(among)))}`;
  const [scale, name] = SCALES.find(([least]) => among >= least * 0.995) ?? [1, ""];
  return `1 in${NB}${two.format(among / scale)}${name && NB + name}`;
}

/**
 * The same in full, for who wants to know.
 * @param {number} p
 */
export function exactly(p) {
  return p > 0
    ? `Probability ${p.toPrecision(3)} (natural logarithm ${Math.log(p).toFixed(2)}) that the model writes exactly this sentence`
    : "A probability too small to be written as a number of double precision";
}

/** @param {number} power */
function raised(power) {
  return [...String(power)].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[Number(digit)]).join("");
}

/** @param {number} count of bytes */
export function bytes(count) {
  if (count < 1000) return `${count}${NB}bytes`;
  const [scale, unit] = count < 999_500 ? [1e3, "KB"] : [1e6, "MB"];
  return `${three.format(count / scale)}${NB}${unit}`;
}

/** @param {number} ms */
export function duration(ms) {
  if (ms < 1) return `under 1${NB}ms`;
  return ms < 999.5 ? `${Math.round(ms)}${NB}ms` : `${three.format(ms / 1000)}${NB}s`;
}

/**
 * @param {number} count
 * @param {string} noun
 */
export function counted(count, noun) {
  return `${count.toLocaleString("en")}${NB}${noun}${count === 1 ? "" : "s"}`;
}

const TITLES = {
  [-2]: "The file cannot be read any more",
  [-1]: "Something went wrong in this page",
  0: "The service does not answer",
  400: "This picture cannot be used", // the page's forms are whole, so it is what is in them
  408: "The upload took too long",
  411: "The service must know how long the upload is",
  413: "Too large",
  415: "Not a picture that can be read",
  422: "The service cannot do that",
  429: "Too many requests for now",
  503: "The service is busy",
  504: "The service took too long",
};

/** @param {number} status of HTTP; 0: there was no answer; below: nothing was sent */
export function title(status) {
  return TITLES[status] ?? `The service answered with status ${status}`;
}
