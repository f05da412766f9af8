// Elements and text. Nothing here or elsewhere makes markup of a text: what a model wrote becomes a text node.

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function find(id) {
  return document.getElementById(id);
}

// ---------------------------------------------------------------------------------------------------------------------
// Numbers

const MINUS = "\u2212";

function formatNumber(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  const size = Math.abs(value);
  let text;
  if (Number.isInteger(value) && size >= 1000) text = value.toLocaleString("en-US");
  else if (size !== 0 && (size >= 1e6 || size < 1e-3)) text = value.toExponential(digits - 1);
  else if (size >= 1000) text = Math.round(value).toLocaleString("en-US");
  else text = Number(value.toPrecision(digits)).toString();
  return text.replace("-", MINUS);
}

function formatFixed(value, places = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  const text = value.toFixed(places);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", MINUS);
}

function formatSigned(value, places = 3) {
  const text = formatFixed(value, places);
  return value > 0 && Number(value.toFixed(places)) > 0 ? `+${text}` : text;
}

function formatShare(value) {
  return value === null || value === undefined ? "\u2013" : `${formatFixed(value * 100, 1)}\u202f%`;
}

function formatCount(count, word, plural = `${word}s`) {
  return `${count.toLocaleString("en-US")} ${count === 1 ? word : plural}`;
}

// ---------------------------------------------------------------------------------------------------------------------
// Untrusted text

// What is not seen, or changes how its neighbours are seen: controls, marks of direction, characters without width.
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb\u{e0000}-\u{e0fff}]+/gu;
const FIRST_SHOWN = 1500; // characters of a message before it is expanded
const MOST_MARKS = 300; // of hidden characters that get an element each; more are written into the text

function nameHidden(run) {
  const points = [...run].map((character) => character.codePointAt(0));
  const shown = (point) => `U+${point.toString(16).toUpperCase().padStart(4, "0")}`;
  if (points.length > 2 && points.every((point) => point === points[0])) return `${shown(points[0])}\u00d7${points.length}`;
  return points.slice(0, 20).map(shown).join("\u202f") + (points.length > 20 ? `\u2026\u00d7${points.length}` : "");
}

// A text as nodes: hidden characters written out, and what was searched for marked.
function makeTextNodes(text, needle = "") {
  const nodes = [];
  let from = 0;
  let marks = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if ((marks += 1) > MOST_MARKS) break;
    nodes.push(...markNeedle(text.slice(from, match.index), needle));
    nodes.push(make("span", { class: "hidden-character", title: "not visible in the message" }, nameHidden(match[0])));
    from = match.index + match[0].length;
  }
  const rest = text.slice(from);
  nodes.push(...markNeedle(marks > MOST_MARKS ? rest.replace(HIDDEN, (run) => `\u27e8${nameHidden(run)}\u27e9`) : rest, needle));
  return nodes;
}

function markNeedle(text, needle) {
  if (!needle) return text ? [text] : [];
  const nodes = [];
  const folded = text.toLowerCase();
  // Where lower case has another length, places differ: then nothing is marked.
  let at = folded.length === text.length ? folded.indexOf(needle) : -1;
  let from = 0;
  while (at >= 0 && nodes.length < 200) {
    if (at > from) nodes.push(text.slice(from, at));
    nodes.push(make("mark", {}, text.slice(at, at + needle.length)));
    from = at + needle.length;
    at = folded.indexOf(needle, from);
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}

// A text of any length, cut in view; its direction is its own and does not leave it. Each press shows ten times as much.
function makeMessage(text, { needle = "", cut = 0, first = FIRST_SHOWN, empty = "(empty message)" } = {}) {
  const body = make("bdi", { class: "message", dir: "auto" });
  const box = make("div", { class: "message-box" }, body);
  if (!text && !cut) {
    body.append(make("span", { class: "quiet" }, empty));
    return box;
  }
  let shown = first;
  const where = needle ? text.toLowerCase().indexOf(needle) : -1;
  while (where >= shown) shown *= 10;
  const draw = () => {
    // Never within a pair of surrogates.
    const end = /[\ud800-\udbff]/.test(text[shown - 1] ?? "") ? shown + 1 : shown;
    body.replaceChildren(...makeTextNodes(text.slice(0, end), needle));
    box.querySelector(".more")?.remove();
    const left = text.length - end;
    if (left > 0) {
      const press = (event) => {
        event.stopPropagation();
        shown *= 10;
        draw();
        (box.querySelector(".more") ?? box.closest("[tabindex]"))?.focus();
      };
      const next = Math.min(left, 9 * shown);
      const label = `Show ${formatCount(next, "more character", "more characters")} of ${left.toLocaleString("en-US")}`;
      box.append(make("button", { class: "more", type: "button", onclick: press }, label));
    } else if (cut > 0) {
      box.append(make("p", { class: "more quiet" }, `${formatCount(cut, "further character")} in the run's own file`));
    }
  };
  draw();
  return box;
}
