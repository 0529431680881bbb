/** Copying what stands on a page. */

/** Puts an element's text into the clipboard. @param {HTMLElement} source */
export async function copy(source) {
  const text = source.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages that come over plain HTTP from another machine have no clipboard: the text is marked, and copied the old way.
    getSelection().selectAllChildren(source);
    const copying = (event) => {
      event.clipboardData.setData("text/plain", text); // what is marked has the looks that the stylesheet gives it
      event.preventDefault();
    };
    document.addEventListener("copy", copying, { once: true });
    document.execCommand("copy");
  }
}
