// The trees of the page: a message is (turn, row), and its path of alternatives follows from its row.

const DATA = JSON.parse(find("data").textContent);
const RUNS = DATA.transcripts.runs;
const TREES = DATA.transcripts.trees;
const HIGH_VALUE = 0.75;

TREES.forEach((tree, number) => {
  tree.number = number;
  tree.key = `${tree.run}/${tree.step}/${tree.line}`;
});
const BY_KEY = new Map(TREES.map((tree) => [tree.key, tree]));

function countRows(tree, turn) {
  return tree.fan_out.slice(0, turn + 1).reduce((product, fan) => product * fan, 1);
}

function pathOf(tree, turn, row) {
  const path = [];
  for (let level = turn; level >= 0; level -= 1) {
    path.unshift(row % tree.fan_out[level]);
    row = Math.floor(row / tree.fan_out[level]);
  }
  return path;
}

function rowOf(tree, path) {
  if (!path.length || path.length > tree.fan_out.length) return null;
  let row = 0;
  for (const [level, index] of path.entries()) {
    if (!(Number.isInteger(index) && index >= 0 && index < tree.fan_out[level])) return null;
    row = row * tree.fan_out[level] + index;
  }
  return row;
}

// Rows of the leaves below a message: a range.
function leavesOf(tree, turn, row) {
  const below = tree.fan_out.slice(turn + 1).reduce((product, fan) => product * fan, 1);
  return [row * below, (row + 1) * below];
}

function lastTurn(tree) {
  return tree.turns[tree.turns.length - 1];
}

// The credit that is shown: the run's own (null), or that of a method that the trees were scored with.
function creditOf(tree, method) {
  return method === null ? tree.turns : (tree.credits[method] ?? tree.turns);
}

function meanReturn(tree) {
  const returns = lastTurn(tree).return;
  return returns.reduce((sum, value) => sum + value, 0) / returns.length;
}

function largestAdvantage(tree, method) {
  let largest = 0;
  creditOf(tree, method).forEach((credit, turn) => {
    if (tree.turns[turn].trained) for (const x of credit.advantage) largest = Math.max(largest, Math.abs(x ?? 0));
  });
  return largest;
}

// ---------------------------------------------------------------------------------------------------------------------
// Filters: each gives the first message of a tree that it is about, as a path; [] for the whole tree; null for none.

function findMessage(tree, test) {
  for (let turn = 0; turn < tree.turns.length; turn += 1) {
    for (let row = 0; row < countRows(tree, turn); row += 1) if (test(turn, row)) return pathOf(tree, turn, row);
  }
  return null;
}

function findZeroCredit(tree, method) {
  return largestAdvantage(tree, method) === 0 ? [] : null;
}

function findTruncated(tree) {
  return findMessage(tree, (turn, row) => tree.turns[turn].truncated[row]);
}

// A first message of high value with a wrong answer under it: the plan was right, and someone after it was not.
function findLost(tree, method) {
  if (tree.turns.length < 2) return null;
  const values = creditOf(tree, method)[0].value;
  const returns = lastTurn(tree).return;
  return findMessage(tree, (turn, row) => {
    if (turn !== tree.turns.length - 1 || returns[row] !== 0) return false;
    return (values[pathOf(tree, turn, row)[0]] ?? 0) >= HIGH_VALUE;
  });
}

function findDisagreement(tree) {
  const credits = [tree.turns, ...Object.values(tree.credits)];
  return findMessage(tree, (turn, row) => {
    if (!tree.turns[turn].trained) return false;
    const signs = credits.map((credit) => Math.sign(credit[turn].advantage[row] ?? 0));
    return signs.includes(1) && signs.includes(-1);
  });
}

const FILTERS = [
  { id: "all", title: "All", text: "every tree on this page", find: () => [] },
  { id: "zero", title: "Zero credit", text: "every message has advantage 0", find: findZeroCredit },
  { id: "truncated", title: "Truncated", text: "a message met its token limit", find: findTruncated },
  {
    id: "lost",
    title: "Right plan, wrong answer",
    text: `a first message of value ${HIGH_VALUE} or more, and a leaf under it with return 0`,
    find: findLost,
  },
  {
    id: "disagree",
    title: "Methods disagree",
    text: "one method raises a message that another lowers",
    find: findDisagreement,
    needsCredits: true,
  },
].filter((filter) => !filter.needsCredits || DATA.transcripts.methods.length > 0);

// ---------------------------------------------------------------------------------------------------------------------
// Search: in questions, messages, answers and names of problems, without case

function listTexts(tree) {
  const texts = tree.turns.flatMap((turn) => turn.text);
  return [tree.problem, tree.question, ...texts, ...lastTurn(tree).answer.map((answer) => answer ?? "")];
}

function holdsText(tree, needle) {
  tree.folded ??= listTexts(tree).join("\n").toLowerCase();
  return tree.folded.includes(needle);
}

function findText(tree, needle) {
  return findMessage(tree, (turn, row) => tree.turns[turn].text[row].toLowerCase().includes(needle)) ?? [];
}
