/** Keys that work anywhere on the page, but not while text is typed or the help is open. */

/** The key's name, a letter by where it stands on keyboards of other scripts. @param {KeyboardEvent} event */
function named(event) {
  if (event.key.length > 1 || event.key === "?") return event.key;
  return /^[ -~]$/.test(event.key) ? event.key.toLowerCase() : event.code.replace(/^Key/, "").toLowerCase();
}

/**
 * @param {Record<string, () => void>} does what each key does, by its name
 * @param {(digit: number) => void} choose is called with a digit, of the row above the letters or of the block beside them
 * @param {HTMLDialogElement} help which `?` closes as well
 */
export function keys(does, choose, help) {
  document.addEventListener("keydown", (event) => {
    const key = named(event);
    const held = event.ctrlKey || event.metaKey;
    if (event.altKey || (held && key !== "z")) return;
    if (help.open) {
      if (key === "?") help.close();
      return;
    }
    if (event.target.closest("input, textarea")) return;
    if (event.target.closest("button") && (key === " " || key === "Enter")) return; // the button's own
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1];
    if (!(key in does) && !digit) return;
    event.preventDefault();
    if (event.repeat) return; // a key that is held decides once
    if (key in does) does[key]();
    else choose(Number(digit));
  });

  // A button that was clicked does not take the focus: the next Space is to skip, not to click it again.
  document.addEventListener("mousedown", (event) => event.target.closest("button") && event.preventDefault());
}
