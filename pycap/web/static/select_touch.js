/** Swipes on the image: it follows the finger, and what letting go would mean stands over it. */

const FAR = 70; // px from where a finger came down to where letting go decides

/** @returns {"accept" | "reject" | "skip" | null} what letting go means, dx and dy px from where the finger came down */
function meaning(dx, dy) {
  if (Math.abs(dx) >= FAR && Math.abs(dx) > Math.abs(dy)) return dx > 0 ? "accept" : "reject";
  return -dy >= FAR && -dy > Math.abs(dx) ? "skip" : null;
}

/**
 * @param {HTMLElement} stage what is swiped, whose first child moves
 * @param {(decision: "accept" | "reject" | "skip" | null) => void} hint is called while the finger moves, and with null when it is up
 * @param {(decision: "accept" | "reject" | "skip") => void} decide is called when it is let go
 */
export function swipes(stage, hint, decide) {
  /** @type {{id: number, x: number, y: number} | null} */
  let finger = null;

  const move = (dx, dy) => {
    stage.firstElementChild.style.transform = dx || dy ? `translate(${dx}px, ${dy}px) rotate(${dx / 40}deg)` : "";
  };
  const end = () => {
    finger = null;
    move(0, 0);
    hint(null);
  };

  stage.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse") return;
    if (finger) end(); // a second finger: the reader zooms
    else if (event.isPrimary) {
      finger = {id: event.pointerId, x: event.clientX, y: event.clientY};
      stage.setPointerCapture(event.pointerId);
    }
  });
  stage.addEventListener("pointermove", (event) => {
    if (event.pointerId !== finger?.id) return;
    const [dx, dy] = [event.clientX - finger.x, event.clientY - finger.y];
    move(dx, Math.min(dy, 0));
    hint(meaning(dx, dy));
  });
  stage.addEventListener("pointerup", (event) => {
    if (event.pointerId !== finger?.id) return;
    const decision = meaning(event.clientX - finger.x, event.clientY - finger.y);
    end();
    if (decision) decide(decision);
  });
  stage.addEventListener("pointercancel", end);
}
