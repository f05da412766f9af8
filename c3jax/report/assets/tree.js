// One problem's tree: the alternatives of a context side by side, each opening what was written after it.

let opened = new Map(); // treeitem by path of the tree that is shown

function shownPath() {
  const chosen = find("tree").querySelector('[role="treeitem"][aria-selected="true"]');
  return chosen ? chosen.dataset.path.split(".").map(Number) : [];
}

function openTree(tree, path, isFocused) {
  current = tree;
  opened = new Map();
  const largest = Math.max(largestAdvantage(tree, view.method), 1e-9);
  const run = RUNS[tree.run];
  const method = view.method ?? run.method;
  const returns = lastTurn(tree).return;
  const facts = [
    ["Problem", tree.problem], ["Step", formatNumber(tree.step)], ["Fan-out", tree.fan_out.join(" \u00d7 ")],
    ["Mean return", formatFixed(meanReturn(tree), 3)], ["Leaves", formatNumber(returns.length)], ["Credit", method],
    ...(RUNS.length > 1 ? [["Run", run.name]] : []),
  ];
  find("tree-facts").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, make("bdi", {}, makeTextNodes(value))))));
  find("tree-question").replaceChildren(makeMessage(tree.question, { needle: view.needle, empty: "(no question)" }));
  find("tree").replaceChildren(...makeLevel(tree, [], largest));
  find("tree").style.setProperty("--fan", tree.fan_out[0]);
  find("tree-empty").hidden = true;
  find("tree-shown").hidden = false;
  document.body.classList.add("has-tree");
  markCurrent(true);
  selectMessage(path.length ? path : [mostCredited(tree, [])], isFocused);
  for (let below = shownPath(); below.length < tree.turns.length; below = [...below, mostCredited(tree, below)]) expand(below);
}

// A tree opens down to an answer: of the alternatives after `path` below the one of the largest advantage.
function mostCredited(tree, path) {
  const first = rowOf(tree, [...path, 0]);
  const alternatives = creditOf(tree, view.method)[path.length].advantage.slice(first, first + tree.fan_out[path.length]);
  const sizes = alternatives.map((x) => Math.abs(x ?? 0));
  return sizes.indexOf(Math.max(...sizes));
}

// ---------------------------------------------------------------------------------------------------------------------
// Messages

function makeLevel(tree, parent, largest) {
  const turn = parent.length;
  return Array.from({ length: tree.fan_out[turn] }, (_, index) => makeAlternative(tree, [...parent, index], largest));
}

function makeAlternative(tree, path, largest) {
  const turn = path.length - 1;
  const row = rowOf(tree, path);
  const section = tree.turns[turn];
  const credit = creditOf(tree, view.method)[turn];
  const isLeaf = turn === tree.turns.length - 1;
  const id = `message-${path.join("-")}`;
  const card = make("div", {
    role: "treeitem", id, class: `card ${section.reward ? "observed" : toneOf(credit.advantage[row], largest, section.trained)}`, tabindex: "-1",
    "data-path": path.join("."), "aria-level": path.length, "aria-posinset": path[turn] + 1, "aria-setsize": tree.fan_out[turn],
    "aria-selected": "false", "aria-expanded": isLeaf ? null : "false", "aria-labelledby": `${id}-name ${id}-credit`,
    onclick: (event) => pressCard(event, path, isLeaf),
    onfocus: () => selectMessage(path, false, false),
  },
    makeCardHead(tree, credit, path, row, id),
    makeMessage(section.text[row], { needle: view.needle, cut: section.cut[row], ...(hasEnded(tree, path) ? { empty: "(the episode had ended)" } : {}) }),
    ...(section.visible ? [make("p", { class: "quiet" }, "Read by others:"), makeMessage(section.visible[row], { needle: view.needle, empty: "(nothing)" })] : []),
    makeFigures(tree, turn, row, credit, isLeaf),
  );
  const item = make("li", { role: "none", class: "alternative" }, card);
  opened.set(path.join("."), card);
  return item;
}

// Whether an environment had ended the episode before a message, so that nobody was asked for it.
function hasEnded(tree, path) {
  const turn = path.length - 1;
  return tree.turns[turn].tokens[rowOf(tree, path)] === 0 &&
    tree.turns.slice(0, turn).some((earlier, level) => earlier.done && earlier.done[rowOf(tree, path.slice(0, level + 1))]);
}

function nameEnvironment(tree, section) {
  return RUNS[tree.run].environments[section.name] ?? "environment";
}

function makeCardHead(tree, credit, path, row, id) {
  const section = tree.turns[path.length - 1];
  const advantage = credit.advantage[row];
  const badges = [];
  if (section.reward) badges.push(make("span", { class: "badge", title: "an environment: no policy speaks, and nothing is trained" }, "answered by ", make("bdi", {}, makeTextNodes(nameEnvironment(tree, section)))));
  else if (!section.trained) badges.push(make("span", { class: "badge" }, "not trained"));
  if (section.truncated[row]) badges.push(make("span", { class: "badge warn" }, section.reward ? "cut" : "truncated"));
  if (section.reward && section.failed[row]) badges.push(make("span", { class: "badge bad" }, "failed"));
  if (section.reward && section.done[row] && !hasEnded(tree, path)) badges.push(make("span", { class: "badge" }, "episode ended"));
  const name = `${section.name} ${path.map((index) => index + 1).join(".")}`;
  return make("div", { class: "card-head" },
    make("span", { class: "card-name", id: `${id}-name` }, name), ...badges,
    section.reward ? make("span", { class: "uncredited quiet", id: `${id}-credit` }, "no credit")
      : make("span", { class: "advantage", id: `${id}-credit`, title: "advantage" },
        make("span", { class: "visually-hidden" }, "advantage "), formatSigned(advantage, 3)));
}

function makeVerdict(section, row) {
  const verdict = section.verdict[row] || (section.return[row] === 1 ? "correct" : "wrong");
  const sign = section.return[row] === 1 ? "\u2713" : section.return[row] === 0 ? "\u2717" : "\u223c";
  const tone = section.return[row] === 1 ? "good" : section.return[row] === 0 ? "bad" : "warn";
  return make("span", { class: `badge ${tone}` }, make("span", { "aria-hidden": "true" }, `${sign} `), makeTextNodes(verdict.slice(0, 40)));
}

function makeFigures(tree, turn, row, credit, isLeaf) {
  const section = tree.turns[turn];
  const figures = [["value", formatFixed(credit.value[row])], ["tokens", formatNumber(section.tokens[row])]];
  if (section.reward) figures.push(["reward", formatSigned(section.reward[row])]);
  else {
    figures.splice(1, 0, ["baseline", formatFixed(credit.baseline[row])]);
    figures.push(["log p", formatFixed(section.logp[row])]);
  }
  const list = make("dl", { class: "figures" }, figures.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  const parts = [list];
  if (isLeaf) {
    const answer = section.answer[row];
    const text = !answer ? make("span", { class: "quiet" }, answer === null ? "none could be read" : "(empty)") : make("bdi", {}, makeTextNodes(answer.slice(0, 200), view.needle));
    const score = make("span", {}, make("span", { class: "quiet" }, "return "), formatFixed(section.return[row]));
    // A function that grades gives a number and names no answer: nothing is said of one.
    const isJudgedWhole = answer === null && ["correct", "partial", "wrong"].includes(section.verdict[row]);
    const shown = isJudgedWhole ? [] : [make("span", {}, make("span", { class: "quiet" }, "answer "), text)];
    parts.unshift(make("p", { class: "answer outcome" }, [makeVerdict(section, row), ...shown, score]));
    if (section.detail[row]) parts.push(make("p", { class: "answer quiet" }, makeTextNodes(section.detail[row].slice(0, 400))));
  }
  const methods = Object.entries(tree.credits);
  if (methods.length && !section.reward) {
    const all = [[RUNS[tree.run].method, tree.turns], ...methods];
    parts.push(make("dl", { class: "credits", "aria-label": "advantage by method" }, all.map(([name, other]) => {
      const x = other[turn].advantage[row];
      return make("div", {}, make("dt", {}, name), make("dd", { class: x > 0 ? "up" : x < 0 ? "down" : "" }, formatSigned(x)));
    })));
  }
  return make("div", { class: "card-foot" }, parts);
}

function toneOf(advantage, largest, isTrained) {
  if (!advantage || !isTrained) return "tone-0";
  const size = Math.abs(advantage) / largest;
  return `tone-${advantage > 0 ? "up" : "down"}-${size > 2 / 3 ? 3 : size > 1 / 3 ? 2 : 1}`;
}

// ---------------------------------------------------------------------------------------------------------------------
// Below a message: what the next role read, and its alternatives

function expand(path) {
  const card = opened.get(path.join("."));
  if (!card || card.getAttribute("aria-expanded") !== "false") return;
  for (const sibling of card.closest("ul").querySelectorAll(':scope > li > [role="treeitem"][aria-expanded="true"]')) collapse(sibling.dataset.path.split(".").map(Number));
  const id = `below-${path.join("-")}`;
  const largest = Math.max(largestAdvantage(current, view.method), 1e-9);
  const group = make("ul", { role: "group", id, class: "alternatives" }, makeLevel(current, path, largest));
  group.style.setProperty("--fan", current.fan_out[path.length]);
  const branch = make("div", { class: "branch" }, makeContext(current, path), group);
  card.after(branch);
  card.setAttribute("aria-expanded", "true");
  card.setAttribute("aria-owns", id);
}

function collapse(path) {
  const name = path.join(".");
  const card = opened.get(name);
  if (!card || card.getAttribute("aria-expanded") !== "true") return;
  card.nextElementSibling.remove();
  card.setAttribute("aria-expanded", "false");
  card.removeAttribute("aria-owns");
  for (const key of [...opened.keys()]) if (key.startsWith(`${name}.`)) opened.delete(key);
}

// What others read of a message.
function readOf(section, row) {
  return (section.visible ?? section.text)[row];
}

// The context that all alternatives after `path` share, as the role's prompts put it together.
function makeContext(tree, path) {
  const turn = tree.turns[path.length];
  if (turn.reward) {
    return make("p", { class: "context quiet" }, "Heard by the environment ", make("b", {}, make("bdi", {}, makeTextNodes(nameEnvironment(tree, turn)))), ": what was written up to here");
  }
  const prompts = RUNS[tree.run].prompts[turn.name] ?? [];
  const slots = [...new Set(prompts.flatMap(([, pieces]) => pieces.filter(([kind]) => kind === "slot").map(([, name]) => name)))];
  const nameOf = (slot) => {
    const level = tree.turns.findIndex((other) => other.name === slot);
    return level < 0 ? slot : `${slot} ${path.slice(0, level + 1).map((index) => index + 1).join(".")}`;
  };
  const textOf = (slot) => {
    const level = tree.turns.findIndex((other) => other.name === slot);
    return level < 0 ? (slot === "question" ? tree.question : "") : readOf(tree.turns[level], rowOf(tree, path.slice(0, level + 1)));
  };
  const who = turn.role === turn.name ? turn.name : `${turn.name} (${turn.role})`;
  const summary = make("summary", {}, make("span", { class: "quiet" }, "Frozen context of "), make("b", {}, who), make("span", { class: "quiet" }, slots.length ? ` \u2014 ${slots.map(nameOf).join(", ")}` : ""));
  const body = prompts.map(([kind, pieces]) => make("div", { class: "prompt" }, make("span", { class: "quiet" }, kind),
    make("bdi", { class: "message", dir: "auto" }, pieces.map(([piece, text]) => piece === "text" ? makeTextNodes(text)
      : make("span", { class: "slot", title: nameOf(text) }, makeTextNodes(textOf(text).slice(0, 20000)))))));
  return make("details", { class: "context" }, summary, ...body, make("p", { class: "quiet" }, "Before the tokenizer's chat template."));
}

// ---------------------------------------------------------------------------------------------------------------------
// Choosing a message

function pressCard(event, path, isLeaf) {
  if (event.target.closest("button, summary, a") || String(getSelection())) return;
  selectMessage(path, true, false); // the press has focused it already, where it was a pointer's
  if (!isLeaf) (opened.get(path.join(".")).getAttribute("aria-expanded") === "true" ? collapse : expand)(path);
}

// Open what leads to a message and what follows it, and make it the one that keys move from.
function selectMessage(path, isFocused, isExpanded = true) {
  for (let depth = 1; depth < path.length; depth += 1) expand(path.slice(0, depth));
  const card = opened.get(path.join("."));
  if (!card) return;
  if (isExpanded) expand(path);
  for (const other of opened.values()) {
    other.setAttribute("aria-selected", String(other === card));
    other.setAttribute("tabindex", other === card ? "0" : "-1");
  }
  const link = linkTo(current, path);
  if (location.hash !== link) history.replaceState(null, "", link);
  if (isFocused) {
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

function moveInTree(key) {
  const path = shownPath();
  const card = opened.get(path.join("."));
  if (!card) return;
  const cards = [...find("tree").querySelectorAll('[role="treeitem"]')];
  const go = (next) => next && selectMessage(next.dataset.path.split(".").map(Number), true, false);
  const isOpen = card.getAttribute("aria-expanded");
  if (key === "ArrowDown") go(cards[cards.indexOf(card) + 1]);
  else if (key === "ArrowUp") go(cards[cards.indexOf(card) - 1]);
  else if (key === "Home") go(cards[0]);
  else if (key === "End") go(cards[cards.length - 1]);
  else if (key === "ArrowRight" && isOpen === "false") expand(path);
  else if (key === "ArrowRight" && isOpen === "true") go(opened.get([...path, 0].join(".")));
  else if (key === "ArrowLeft" && isOpen === "true") collapse(path);
  else if (key === "ArrowLeft" && path.length > 1) go(opened.get(path.slice(0, -1).join(".")));
  else if ((key === "Enter" || key === " ") && isOpen) (isOpen === "true" ? collapse : expand)(path);
}
