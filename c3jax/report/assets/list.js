// The list of trees: filter, search, order, and the tree that is chosen.

const view = { filter: "all", needle: "", run: "all", step: "all", order: "recorded", method: null };
let listed = []; // trees in the order shown
let isListed = false; // the list is made when it is first looked at
let current = null; // the tree that is open

const ORDERS = {
  recorded: { title: "as recorded", compare: (a, b) => a.number - b.number },
  credit: {
    title: "largest advantage",
    compare: (a, b) => largestAdvantage(b, view.method) - largestAdvantage(a, view.method) || a.number - b.number,
  },
  worst: { title: "lowest return", compare: (a, b) => meanReturn(a) - meanReturn(b) || a.number - b.number },
  best: { title: "highest return", compare: (a, b) => meanReturn(b) - meanReturn(a) || a.number - b.number },
};

function activeFilter() {
  return FILTERS.find((filter) => filter.id === view.filter);
}

function isInScope(tree) {
  return (
    (view.run === "all" || tree.run === Number(view.run)) &&
    (view.step === "all" || tree.step === Number(view.step)) &&
    (!view.needle || holdsText(tree, view.needle))
  );
}

// The message to open a tree at: of the search first, else of the filter.
function findOpening(tree) {
  if (view.needle) {
    const path = findText(tree, view.needle);
    if (path.length) return path;
  }
  return activeFilter().find(tree, view.method) ?? [];
}

function linkTo(tree, path = []) {
  return `#transcripts/${tree.key}${path.length ? `/${path.join(".")}` : ""}`;
}

function updateList() {
  isListed = true;
  const inScope = TREES.filter(isInScope);
  for (const filter of FILTERS) {
    const count = inScope.filter((tree) => filter.find(tree, view.method) !== null).length;
    const button = find(`filter-${filter.id}`);
    button.setAttribute("aria-pressed", String(view.filter === filter.id));
    button.querySelector(".count").textContent = count.toLocaleString("en-US");
  }
  listed = inScope.filter((tree) => activeFilter().find(tree, view.method) !== null).sort(ORDERS[view.order].compare);
  find("tree-list").replaceChildren(...listed.map(makeItem));
  const recorded = RUNS.reduce((sum, run) => sum + run.recorded, 0);
  const shown = `${formatCount(listed.length, "tree")}${listed.length === TREES.length ? "" : ` of ${TREES.length.toLocaleString("en-US")}`}`;
  find("list-status").textContent = recorded > TREES.length ? `${shown} \u00b7 a sample of ${recorded.toLocaleString("en-US")}` : shown;
  find("no-trees").hidden = listed.length > 0;
  markCurrent(false);
}

function makeItem(tree) {
  const returns = lastTurn(tree).return;
  const mean = meanReturn(tree);
  const score = make("span", { class: `score ${mean === 1 ? "good" : mean === 0 ? "bad" : ""}`, title: `mean return of ${formatCount(returns.length, "leaf", "leaves")}` }, formatFixed(mean, 2));
  const marks = [];
  if (findZeroCredit(tree, view.method)) marks.push("zero credit");
  if (findTruncated(tree)) marks.push("truncated");
  const where = [RUNS.length > 1 ? RUNS[tree.run].name : null, `step ${tree.step}`, tree.problem, ...marks].filter(Boolean);
  const link = make("a", { href: linkTo(tree, findOpening(tree)), "data-key": tree.key },
    make("bdi", { class: "item-question", dir: "auto" }, makeTextNodes(tree.question.slice(0, 160), view.needle)),
    score,
    make("bdi", { class: "item-where quiet" }, makeTextNodes(where.join(" \u00b7 ").slice(0, 200))),
  );
  return make("li", {}, link);
}

function markCurrent(isScrolled) {
  for (const link of find("tree-list").querySelectorAll("a[aria-current]")) link.removeAttribute("aria-current");
  const link = current && find("tree-list").querySelector(`a[data-key="${current.key}"]`);
  if (!link) return;
  link.setAttribute("aria-current", "true");
  if (isScrolled) link.scrollIntoView({ block: "nearest" });
}

// j and k: the next or previous tree of the list.
function stepTree(by) {
  if (!listed.length) return;
  const at = current ? listed.indexOf(current) : -1;
  const next = listed[at < 0 ? (by > 0 ? 0 : listed.length - 1) : Math.min(listed.length - 1, Math.max(0, at + by))];
  if (next !== current) location.hash = linkTo(next, findOpening(next));
}

// ---------------------------------------------------------------------------------------------------------------------
// Controls

function fillSelect(select, options, onchange) {
  select.replaceChildren(...options.map(([value, title]) => make("option", { value }, title)));
  select.addEventListener("change", () => onchange(select.value));
}

function setUpList() {
  find("filters").replaceChildren(
    ...FILTERS.map((filter) =>
      make("button", { type: "button", id: `filter-${filter.id}`, class: "chip", title: filter.text, "aria-pressed": "false",
        onclick: () => changeView({ filter: filter.id }) },
        filter.title, " ", make("span", { class: "count" })),
    ),
  );
  const steps = [...new Set(TREES.map((tree) => tree.step))].sort((a, b) => a - b);
  fillSelect(find("choose-step"), [["all", "every step"], ...steps.map((step) => [step, `step ${step}`])], (step) => changeView({ step }));
  fillSelect(find("choose-run"), [["all", "every run"], ...RUNS.map((run, index) => [index, run.name])], (run) => changeView({ run }));
  find("choose-run").closest("label").hidden = RUNS.length < 2;
  fillSelect(find("choose-order"), Object.entries(ORDERS).map(([id, order]) => [id, order.title]), (order) => changeView({ order }));
  const methods = DATA.transcripts.methods;
  const own = [...new Set(RUNS.map((run) => run.method))].join(", ");
  fillSelect(find("choose-method"), [["", `${own} (this run's)`], ...methods.map((name) => [name, name])], (name) => changeView({ method: name || null }));
  find("choose-method").closest("label").hidden = methods.length === 0;
  let timer = 0;
  find("search").addEventListener("input", (event) => {
    clearTimeout(timer);
    const needle = event.target.value.trim().toLowerCase();
    timer = setTimeout(() => changeView({ needle }), 120);
  });
}

function changeView(changes) {
  Object.assign(view, changes);
  updateList();
  if (current) openTree(current, shownPath(), false);
}
