"""What can be seen of any page in a browser, asked of the browser: what is cut off, what cannot be read, what has no name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

#: Roles that a person operates, and pictures: each needs a name that can be read out.
_NAMED = frozenset(
    (
        "button",
        "link",
        "textbox",
        "searchbox",
        "checkbox",
        "radio",
        "combobox",
        "listbox",
        "option",
        "slider",
        "spinbutton",
    )
    + ("switch", "tab", "menuitem", "progressbar", "meter", "dialog", "alertdialog", "image", "img", "region")
)

# The elements that reach out of the window, unless something around them scrolls or cuts them.
_OUTSIDE = """
const width = document.documentElement.clientWidth, found = [];
if (document.documentElement.scrollWidth > width) found.push(`the page is ${document.documentElement.scrollWidth} wide`);
for (const each of document.body.querySelectorAll("*")) {
  const box = each.getBoundingClientRect();
  if (!box.width || !each.checkVisibility({ visibilityProperty: true })) continue;
  if (box.right <= width + 0.5 && box.left >= -0.5) continue;
  let around = each.parentElement;
  while (around && getComputedStyle(around).overflowX === "visible") around = around.parentElement;
  if (!around) found.push(`${each.tagName} ${each.className}: ${box.left} to ${box.right}`);
}
return found;
"""

# Texts and what they stand on: [text, colour, [colours behind, the innermost first], size in pixels, weight].
_TEXTS = """
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement, style = getComputedStyle(element);
  if (!text || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || element.closest(":disabled"))
    continue;
  const behind = [];
  for (let each = element; each; each = each.parentElement) behind.push(getComputedStyle(each).backgroundColor);
  found.push([text.slice(0, 40), style.color, behind, parseFloat(style.fontSize), Number(style.fontWeight)]);
}
return found;
"""


def faults(driver: Chrome) -> list[str]:
    """What can be seen to be wrong with the page as it stands."""
    return [*outside(driver), *unreadable(driver), *unnamed(driver)]


def outside(driver: Chrome) -> list[str]:
    """What reaches out of the window to the right or left."""
    return list(driver.execute_script(_OUTSIDE))


def unreadable(driver: Chrome) -> list[str]:
    """Texts, as the browser has coloured them, that contrast with what they stand on by less than WCAG's level AA asks."""
    from tests.pages.test_style import contrast

    found = []
    for text, colour, behind, size, weight in driver.execute_script(_TEXTS):
        ground = next((c for c in map(_rgb, behind) if c), "#ffffff")
        large = size >= 24 or (size >= 18.66 and weight >= 700)
        front = _rgb(colour)
        assert front, f"{text!r} has the colour {colour}"
        if (ratio := contrast(front, ground)) < (3.0 if large else 4.5):
            found.append(f"{text!r}: {front} on {ground}, {ratio:.2f}")
    return found


def unnamed(driver: Chrome) -> list[str]:
    """Controls and pictures without a name in the tree that screen readers are given."""
    tree = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [
        f"{role} without a name: {_origin(driver, node)}"
        for node in tree
        if not node["ignored"] and (role := node["role"]["value"]) in _NAMED and not _name(node)
    ]


def named(driver: Chrome, role: str) -> list[str]:
    """The names of what has a role, in the page's order."""
    tree = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [_name(node) for node in tree if not node["ignored"] and node["role"]["value"] == role]


def _name(node: dict[str, Any]) -> str:
    return str(node.get("name", {}).get("value", "")).strip()


def _origin(driver: Chrome, node: dict[str, Any]) -> str:
    told = driver.execute_cdp_cmd("DOM.describeNode", {"backendNodeId": node["backendDOMNodeId"]})["node"]
    return f"{told['nodeName'].lower()} {told.get('attributes', [])}"


def _rgb(colour: str) -> str | None:
    """#rrggbb of what a browser computes; None for what is seen through."""
    parts = [float(part) for part in colour[colour.index("(") + 1 : -1].replace(",", " ").split()]
    if len(parts) == 4 and parts[3] == 0:
        return None
    assert colour.startswith("rgb") and (len(parts) == 3 or parts[3] == 1), f"{colour} is mixed with what is behind it"
    return "#" + "".join(f"{round(part):02x}" for part in parts[:3])
