// The page: views by location.hash, keys, theme, and the controls of the curves.

const VIEWS = ["overview", "curves", "transcripts"];

// ---------------------------------------------------------------------------------------------------------------------
// Views

function showView(name) {
  for (const other of VIEWS) {
    find(other).hidden = other !== name;
    const link = find(`to-${other}`);
    if (other === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.body.dataset.view = name;
  if (name === "transcripts" && !isListed) updateList();
  drawCurves();
}

function route() {
  const [name, run, step, line, path] = decodeURIComponent(location.hash.slice(1)).split("/");
  const isKnown = VIEWS.includes(name);
  if (!isKnown || name !== "transcripts" || run === undefined) {
    if (name === "transcripts") {
      document.body.classList.remove("has-tree");
    }
    showView(isKnown ? name : "overview");
    if (name === "transcripts" && !current && listed.length && matchMedia("(min-width: 800px)").matches) {
      openTree(listed[0], findOpening(listed[0]), false);
    }
    return;
  }
  showView("transcripts");
  const tree = BY_KEY.get(`${run}/${step}/${line}`);
  const indices = path ? path.split(".").map(Number) : [];
  const isThere = tree && (!path || rowOf(tree, indices) !== null);
  find("not-here").hidden = Boolean(isThere);
  if (!isThere) {
    find("not-here").textContent = `This page has no message ${location.hash.slice(1, 80)}: it shows ${formatCount(TREES.length, "tree")}.`;
    return;
  }
  if (!listed.includes(tree)) {
    Object.assign(view, { filter: "all", needle: "", run: "all", step: "all" });
    for (const id of ["choose-run", "choose-step"]) find(id).value = "all";
    find("search").value = "";
    current = tree;
    updateList();
  }
  openTree(tree, indices, document.activeElement === document.body || Boolean(document.activeElement.closest("#tree")));
}

// ---------------------------------------------------------------------------------------------------------------------
// Curves

function setUpCurves() {
  const names = Object.entries(CURVES.figures);
  const [main, further] = [true, false].map((isMain) => names.filter(([, figure]) => figure.is_main === isMain).map(([name]) => name));
  const isWanted = (name) => collectLines(name).length > 0;
  find("main-charts").replaceChildren(...main.filter(isWanted).map(makeChart));
  find("further-charts").replaceChildren(...further.filter(isWanted).map(makeChart));
  find("further").hidden = further.length === 0;
  find("further").addEventListener("toggle", drawCurves);
  find("overview-charts").replaceChildren(...["return", "accuracy"].filter((name) => main.includes(name) && isWanted(name)).map(makeChart));
  fillSelect(find("choose-axis"), Object.entries(CURVES.axes), (name) => { axisName = name; drawCurves(); fillTable(); });
  fillSelect(find("choose-smoothing"), [[1, "none"], [5, "mean of 5 points"], [20, "mean of 20 points"]], (width) => { smoothing = Number(width); drawCurves(); fillTable(); });
  find("legend").replaceChildren(...(CURVES.groups.length > 1 ? CURVES.groups.map(makeLegend) : []));
  const widths = [...new Set(CURVES.runs.map((run) => run.width))].filter((width) => width > 1);
  const seeds = CURVES.runs.length > CURVES.groups.length ? ["A line is the mean over seeds, its band reaches from the lowest to the highest."] : [];
  const points = widths.length ? [`A point is the mean of ${widths.join(" or ")} steps.`] : [];
  find("curves-note").textContent = [...seeds, "Bands of accuracy are 95\u202f% intervals where there is one seed.", ...points].join(" ");
  find("values").addEventListener("toggle", fillTable);
  let timer = 0;
  new ResizeObserver(() => {
    clearTimeout(timer);
    timer = setTimeout(() => plots.filter(({ plot, canvas }) => plot.width !== widthOf(canvas)).forEach(({ plot, canvas }) => plot.setSize({ width: widthOf(canvas), height: HEIGHT })), 60);
  }).observe(document.body);
}

function makeLegend(name, index) {
  const press = () => {
    if (!shownGroups.delete(index)) shownGroups.add(index);
    button.setAttribute("aria-pressed", String(shownGroups.has(index)));
    drawCurves();
  };
  const seeds = CURVES.runs.filter((run) => run.group === index).length;
  const button = make("button", { type: "button", class: "chip", "aria-pressed": "true", onclick: press },
    make("i", { class: `swatch color-group-${index % 8}`, "aria-hidden": "true" }), name, " ", make("span", { class: "count" }, formatCount(seeds, "seed")));
  return button;
}

// Only what is seen is drawn; a theme, a size or an axis draws it again.
function drawCurves() {
  for (const { plot } of plots) plot.destroy();
  plots = [];
  for (const box of document.querySelectorAll(".chart")) if (box.offsetParent !== null) drawChart(box, box.dataset.figure);
}

// The main figures as a table, at eleven places of the axis.
function fillTable() {
  if (!find("values").open) return;
  const names = Object.keys(CURVES.figures).filter((name) => CURVES.figures[name].is_main && name !== "accuracy");
  const rows = CURVES.runs.flatMap((run) => {
    const count = run.axes[axisName].length;
    const places = [...new Set(Array.from({ length: Math.min(11, count) }, (_, i) => Math.round((i * (count - 1)) / Math.max(1, Math.min(11, count) - 1))))];
    return places.map((at) => make("tr", {}, make("th", { scope: "row" }, run.name), make("td", {}, formatNumber(run.axes[axisName][at])),
      names.map((name) => make("td", {}, formatValue(CURVES.figures[name], smooth(run.figures[name])[at])))));
  });
  const head = ["Run", CURVES.axes[axisName], ...names.map((name) => CURVES.figures[name].title)];
  find("values-table").replaceChildren(make("thead", {}, make("tr", {}, head.map((title) => make("th", { scope: "col" }, title)))), make("tbody", {}, rows));
}

// ---------------------------------------------------------------------------------------------------------------------
// Theme

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function markTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  find("theme").setAttribute("aria-label", isDark() ? "Use the light theme" : "Use the dark theme");
  find("theme").setAttribute("aria-pressed", String(isDark()));
}

function setTheme(theme) {
  markTheme(theme);
  drawCurves();
}

function setUpTheme() {
  let kept = null;
  try { kept = localStorage.getItem("c3jax-theme"); } catch { /* a browser that keeps nothing for files */ }
  markTheme(kept === "dark" || kept === "light" ? kept : null); // the first view draws its curves
  find("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("c3jax-theme", theme); } catch { /* the same */ }
    setTheme(theme);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(null));
}

// ---------------------------------------------------------------------------------------------------------------------
// Keys

const TREE_KEYS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home", "End", "Enter", " "];

function pressKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || find("help").open) return;
  const target = event.target;
  if (target.matches("input, select, textarea")) {
    if (event.key === "Escape" && target.id === "search") clearSearch();
    return;
  }
  if (event.key === "?") find("help").showModal();
  else if (event.key === "/") openSearch();
  else if (event.key === "j" || event.key === "k") {
    if (find("transcripts").hidden) location.hash = "transcripts";
    else stepTree(event.key === "j" ? 1 : -1);
  } else if (TREE_KEYS.includes(event.key) && !find("transcripts").hidden && current) {
    const isInTree = target.matches('[role="treeitem"]');
    if (!isInTree && target !== document.body) return;
    if (!isInTree && !event.key.startsWith("Arrow")) return;
    moveInTree(event.key);
  } else return;
  event.preventDefault();
}

function openSearch() {
  if (find("transcripts").hidden) location.hash = "transcripts";
  document.body.classList.remove("has-tree");
  showView("transcripts");
  find("search").focus();
  find("search").select();
}

function clearSearch() {
  find("search").value = "";
  changeView({ needle: "" });
  find("search").blur();
}

// ---------------------------------------------------------------------------------------------------------------------

setUpList();
setUpCurves();
setUpTheme();
route();
addEventListener("hashchange", route);
addEventListener("keydown", pressKey);
find("open-help").addEventListener("click", () => find("help").showModal());
find("close-help").addEventListener("click", () => find("help").close());
document.documentElement.dataset.ready = String(Math.round(performance.now()));
