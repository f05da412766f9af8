// Curves: the mean of each group of runs with a band from its lowest to its highest seed, drawn by uPlot.

const CURVES = DATA.curves;
const HEIGHT = 180; // of a chart, pixels
const GRID = 300; // points of a mean over runs whose points lie apart
const shownGroups = new Set(CURVES.groups.map((_, index) => index));
let axisName = "step";
let smoothing = 1;
let plots = [];

function colorOf(name) {
  const probe = find("color-probe");
  probe.className = `color-${name}`;
  return getComputedStyle(probe).color;
}

function fade(color, share) {
  return color.replace(/^rgba?\(([^)]*?)(,[^,]*)?\)$/, (_, rgb, alpha) =>
    `rgba(${rgb.split(",").length === 3 ? rgb : rgb + (alpha ?? "")}, ${share})`,
  );
}

// ---------------------------------------------------------------------------------------------------------------------
// From runs to the lines of a group

function smooth(values) {
  if (smoothing === 1) return values;
  return values.map((_, index) => {
    const part = values.slice(Math.max(0, index - smoothing + 1), index + 1).filter((value) => value !== null);
    return part.length ? part.reduce((sum, value) => sum + value, 0) / part.length : null;
  });
}

function interpolate(xs, ys, x) {
  if (x < xs[0] || x > xs[xs.length - 1]) return null;
  let high = xs.findIndex((other) => other >= x);
  if (xs[high] === x || high === 0) return ys[high];
  const low = high - 1;
  if (ys[low] === null || ys[high] === null) return null;
  return ys[low] + ((ys[high] - ys[low]) * (x - xs[low])) / (xs[high] - xs[low]);
}

// {x, mean, low, high} of a group's runs; where their points lie apart, on a grid over the part that all have.
function joinRuns(runs) {
  const [first] = runs;
  const isSame = runs.every((run) => run.x.length === first.x.length && run.x.every((x, i) => x === first.x[i]));
  let grid = first.x;
  let columns = runs.map((run) => run.y);
  if (!isSame) {
    const low = Math.max(...runs.map((run) => run.x[0]));
    const high = Math.min(...runs.map((run) => run.x[run.x.length - 1]));
    if (high <= low) return null;
    grid = Array.from({ length: GRID }, (_, index) => low + ((high - low) * index) / (GRID - 1));
    columns = runs.map((run) => grid.map((x) => interpolate(run.x, run.y, x)));
  }
  const combine = (reduce) =>
    grid.map((_, index) => {
      const here = columns.map((column) => column[index]).filter((value) => value !== null);
      return here.length === columns.length ? reduce(here) : null;
    });
  return {
    x: grid,
    mean: combine((here) => here.reduce((sum, value) => sum + value, 0) / here.length),
    low: runs.length > 1 ? combine((here) => Math.min(...here)) : null,
    high: runs.length > 1 ? combine((here) => Math.max(...here)) : null,
  };
}

function collectLines(name) {
  const lines = [];
  for (const group of shownGroups) {
    const runs = CURVES.runs.filter((run) => run.group === group);
    if (name !== "accuracy") {
      const usable = runs.filter((run) => run.figures[name].some((value) => value !== null));
      const line = usable.length && joinRuns(usable.map((run) => ({ x: run.axes[axisName], y: smooth(run.figures[name]) })));
      if (line) lines.push({ group, label: CURVES.groups[group], ...line });
      continue;
    }
    const cells = new Set(runs.flatMap((run) => Object.keys(run.evaluations)));
    [...cells].forEach((cell, index) => {
      const usable = runs.filter((run) => run.evaluations[cell]?.value.length);
      const line = joinRuns(usable.map((run) => ({ x: run.evaluations[cell][axisName], y: run.evaluations[cell].value })));
      if (!line) return;
      if (usable.length === 1) Object.assign(line, { low: usable[0].evaluations[cell].low, high: usable[0].evaluations[cell].high });
      const who = CURVES.groups.length > 1 ? `${CURVES.groups[group]}, ` : "";
      lines.push({ group, dash: index, label: who + cell.replace("heldout, ", ""), isSparse: true, ...line });
    });
  }
  return lines;
}

// ---------------------------------------------------------------------------------------------------------------------
// Drawing

const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3]];

function makeSeries(lines) {
  const xs = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const series = [{}];
  const bands = [];
  const data = [xs];
  for (const line of lines) {
    const at = new Map(line.x.map((x, index) => [x, index]));
    const spread = (column) => xs.map((x) => (at.has(x) ? column[at.get(x)] : undefined));
    const color = colorOf(`group-${line.group % 8}`);
    const isGap = { spanGaps: false, points: { show: line.isSparse ?? line.x.length === 1, size: 6, fill: color } };
    data.push(spread(line.mean));
    series.push({ label: line.label, stroke: color, width: 2, dash: DASHES[(line.dash ?? 0) % DASHES.length], ...isGap });
    if (line.low) {
      data.push(spread(line.high), spread(line.low));
      series.push({ width: 0, points: { show: false } }, { width: 0, points: { show: false } });
      bands.push({ series: [series.length - 2, series.length - 1], fill: fade(color, 0.16) });
    }
  }
  return { data, series, bands };
}

function formatValue(figure, value) {
  return figure.form === "share" ? formatShare(value) : figure.form === "score" ? formatFixed(value) : formatNumber(value);
}

// The numbers of an axis, all with as many decimals as their distance needs.
function formatTicks(ticks, isShare) {
  const size = Math.max(...ticks.map(Math.abs));
  const [unit, word] = isShare ? [0.01, "\u202f%"] : size >= 1e9 ? [1e9, "G"] : size >= 1e6 ? [1e6, "M"] : size >= 5e3 ? [1e3, "k"] : [1, ""];
  const distance = ticks.length > 1 ? (ticks[1] - ticks[0]) / unit : 1;
  const isSmall = distance > 0 && distance < 1e-4;
  const places = Array.from({ length: 5 }, (_, n) => n).find((n) => Math.abs(distance - Number(distance.toFixed(n))) < distance / 100) ?? 4;
  return ticks.map((tick) => (isSmall ? formatNumber(tick / unit) : formatFixed(tick / unit, places)) + (tick === 0 && word !== "\u202f%" ? "" : word));
}

// Steps, calls and tokens are counted: between two of them is nothing.
const WHOLE = Array.from({ length: 13 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();

// What is zero all along would else be drawn on an axis up to 100.
function rangeOf(_, low, high) {
  if (low === null) return [null, null];
  return low === 0 && high === 0 ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true);
}

function widthOf(canvas) {
  return Math.max(200, canvas.clientWidth);
}

function drawChart(box, name) {
  const figure = CURVES.figures[name];
  const lines = collectLines(name);
  const readout = box.querySelector(".readout");
  const canvas = box.querySelector(".canvas");
  canvas.replaceChildren();
  readout.replaceChildren();
  if (!lines.length) {
    canvas.append(make("p", { class: "quiet" }, "not recorded"));
    return;
  }
  const { data, series, bands } = makeSeries(lines);
  const show = (index) => {
    const items = lines.map((line) => {
      const x = index === null ? line.x[line.x.length - 1] : data[0][index];
      const value = line.mean[line.x.indexOf(x)];
      const label = lines.length > 1 ? make("span", { class: "quiet" }, `${line.label} `) : null;
      const mark = make("i", { class: `swatch color-group-${line.group % 8} dash-${(line.dash ?? 0) % DASHES.length}`, "aria-hidden": "true" });
      return make("span", { class: "value" }, lines.length > 1 ? mark : null, label, formatValue(figure, value));
    });
    const place = index === null ? null : make("span", { class: "quiet" }, `at ${formatNumber(data[0][index])}`);
    readout.replaceChildren(...items, ...(place ? [place] : []));
  };
  show(null);
  const axis = { stroke: colorOf("quiet"), font: "12px system-ui, sans-serif", ticks: { show: false } };
  const grid = { stroke: colorOf("line"), width: 1 };
  const options = {
    width: widthOf(canvas),
    height: HEIGHT,
    padding: [8, 12, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: "all" }, y: false, drag: { x: true, y: false } },
    scales: { x: { time: false }, y: { range: rangeOf } },
    series,
    bands,
    axes: [
      { ...axis, grid: { show: false }, size: 28, space: 60, incrs: axisName === "seconds" ? null : WHOLE, values: (_, ticks) => formatTicks(ticks, false) },
      { ...axis, grid, size: 52, space: 36, values: (_, ticks) => formatTicks(ticks, figure.form === "share") },
    ],
    hooks: { setCursor: [(plot) => show(plot.cursor.idx ?? null)] },
  };
  const plot = new uPlot(options, data, canvas);
  canvas.setAttribute("aria-label", describeLines(figure, lines));
  plots.push({ plot, canvas });
}

function describeLines(figure, lines) {
  const parts = lines.map((line) => {
    const values = line.mean.filter((value) => value !== null && value !== undefined);
    const [from, to] = [values[0], values[values.length - 1]].map((value) => formatValue(figure, value));
    const [low, high] = [Math.min(...values), Math.max(...values)].map((value) => formatValue(figure, value));
    return `${line.label}: from ${from} to ${to}, lowest ${low}, highest ${high}`;
  });
  return `${figure.title} by ${CURVES.axes[axisName].toLowerCase()}. ${parts.join(". ")}`;
}

function makeChart(name) {
  const figure = CURVES.figures[name];
  const heading = make("figcaption", {}, make("b", {}, figure.title), figure.text ? make("span", { class: "quiet" }, figure.text) : null);
  return make("figure", { class: "chart", "data-figure": name }, heading, make("div", { class: "readout" }),
    make("div", { class: "canvas", role: "img" }));
}
