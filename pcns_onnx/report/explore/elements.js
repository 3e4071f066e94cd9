// What all parts use: the record, elements made of plain text, numbers as people read them, and what is chosen.

const page = JSON.parse(document.getElementById('exploration').textContent);
const exploration = page.exploration;
const chosen = {point: 0, group: -1, listeners: []};

/** Tell all parts that another point or group is chosen. */
function choose(change) {
  Object.assign(chosen, change);
  for (const listener of chosen.listeners) listener();
}

/** An HTML element. Texts are texts: a name may hold anything. */
function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** An SVG element. */
function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS('http://www.w3.org/2000/svg', name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

function small(value) {
  return value === 0 || (value >= 1e-3 && value < 1e3) ? value.toPrecision(3) : value.toExponential(1);
}

function bytes(count) {
  if (count < 1e3) return `${count.toFixed(0)} B`;
  if (count < 1e6) return `${(count / 1e3).toFixed(1)} kB`;
  return count < 1e9 ? `${(count / 1e6).toFixed(1)} MB` : `${(count / 1e9).toFixed(2)} GB`;
}

/** The middle of a long text left out. */
function shortened(text, most) {
  const half = Math.floor(most / 2);
  return text.length <= most ? text : `${text.slice(0, half - 1)}…${text.slice(-half)}`;
}
