// Cost against predicted error: one control for mouse, finger and keys, as a slider is.

const FRAME = {wide: 440, high: 290, left: 46, right: 14, top: 28, bottom: 42};

function makeFrontier(place, axis) {
  const points = exploration.points;
  const names = Object.keys(points[0].costs);
  for (const name of names) axis.append(element('option', {value: name}, page.labels[name] || name));
  const levels = rounded(Math.max(...points.map(point => point.error), 1e-9));
  const most = levels.at(-1);
  const x = share => FRAME.left + share * (FRAME.wide - FRAME.left - FRAME.right);
  const y = error => FRAME.high - FRAME.bottom - (error / most) * (FRAME.high - FRAME.top - FRAME.bottom);
  const at = point => [x(Math.min(point.costs[axis.value], 1)), y(point.error)];
  const svg = drawn('svg', {
    viewBox: `0 0 ${FRAME.wide} ${FRAME.high}`, tabindex: 0, role: 'slider', 'aria-label': 'point on the frontier',
    'aria-valuemin': 1, 'aria-valuemax': points.length,
  });
  place.append(svg);

  function draw() {
    const point = points[chosen.point];
    const [chosenX, chosenY] = at(point);
    const ticks = [0, 0.25, 0.5, 0.75, 1].map(share => drawn('g', {},
      drawn('line', {class: 'axis', x1: x(share), x2: x(share), y1: FRAME.top, y2: FRAME.high - FRAME.bottom}),
      drawn('text', {class: 'tick', x: x(share), y: FRAME.high - 24, 'text-anchor': 'middle'}, `${share}`)));
    const lines = levels.map(level => drawn('g', {},
      drawn('line', {class: 'axis', x1: FRAME.left, x2: FRAME.wide - FRAME.right, y1: y(level), y2: y(level)}),
      drawn('text', {class: 'tick', x: FRAME.left - 6, y: y(level) + 4, 'text-anchor': 'end'}, `${level}`)));
    const dots = points.map((one, index) => {
      const [cx, cy] = at(one);
      return drawn('circle', {class: index === chosen.point ? 'dot chosen' : 'dot', cx, cy, r: index === chosen.point ? 8 : 5});
    });
    svg.replaceChildren(
      ...ticks, ...lines,
      drawn('line', {class: 'guide', x1: chosenX, x2: chosenX, y1: chosenY, y2: FRAME.high - FRAME.bottom}),
      drawn('line', {class: 'guide', x1: FRAME.left, x2: chosenX, y1: chosenY, y2: chosenY}),
      drawn('polyline', {class: 'curve', points: [[x(1), y(0)], ...points.map(at)].map(pair => pair.join(',')).join(' ')}),
      ...dots,
      drawn('text', {class: 'tick', x: (FRAME.left + FRAME.wide) / 2, y: FRAME.high - 6, 'text-anchor': 'middle'},
        `${page.labels[axis.value] || axis.value}, share of the original`),
      drawn('text', {class: 'tick', x: 2, y: 14}, 'predicted relative error'));
    svg.setAttribute('aria-valuenow', chosen.point + 1);
    svg.setAttribute('aria-valuetext',
      names.map(name => `${page.labels[name] || name} ${percent(point.costs[name])}`).join(', ') +
      `, predicted error ${small(point.error)}`);
  }

  const choosePoint = index => choose({point: Math.min(Math.max(index, 0), points.length - 1)});
  const steps = {ArrowRight: -1, ArrowUp: -1, ArrowLeft: 1, ArrowDown: 1, PageUp: -3, PageDown: 3};
  svg.addEventListener('keydown', event => {
    const ends = {Home: points.length - 1, End: 0};
    if (event.key in steps) choosePoint(chosen.point + steps[event.key]);
    else if (event.key in ends) choosePoint(ends[event.key]);
    else return;
    event.preventDefault();
  });
  svg.addEventListener('click', event => {
    const scale = FRAME.wide / svg.getBoundingClientRect().width;
    const clickX = (event.clientX - svg.getBoundingClientRect().left) * scale;
    const clickY = (event.clientY - svg.getBoundingClientRect().top) * scale;
    const far = points.map(point => Math.hypot(at(point)[0] - clickX, at(point)[1] - clickY));
    choosePoint(far.indexOf(Math.min(...far)));
  });
  axis.addEventListener('change', draw);
  chosen.listeners.push(draw);
}

/** Up to six round numbers from 0 on, the last of which is not below `most`. */
function rounded(most) {
  const power = 10 ** Math.floor(Math.log10(most / 5));
  const step = power * [1, 2, 5, 10].find(times => times * power * 5 >= most);
  return Array.from({length: Math.ceil(most / step - 1e-9) + 1}, (_, index) => Number((index * step).toPrecision(6)));
}

/** The few numbers of the point that is chosen. */
function makeTiles(place) {
  const before = exploration.before;
  chosen.listeners.push(() => {
    const {costs, error} = exploration.points[chosen.point];
    const rows = [
      ['predicted error', small(error), 'relative, at the outputs, before the re-fit'],
      ['MACs', percent(costs.macs), `of ${before.unknown ? 'the known ' : ''}${before.macs.toLocaleString('en')}`],
      ['parameters', percent(costs.params), `of ${before.parameters.toLocaleString('en')}`],
      ['file', bytes(costs.size * before.bytes), `${percent(costs.size)} of ${bytes(before.bytes)}`],
    ];
    if ('latency' in costs) {
      const time = costs.latency * exploration.milliseconds;
      rows.push(['latency', `${small(time)} ms`, `${percent(costs.latency)} of ${small(exploration.milliseconds)} ms, predicted`]);
    }
    place.replaceChildren(...rows.map(([name, value, words]) =>
      element('div', {}, element('dt', {}, name), element('dd', {}, value), element('dd', {}, words))));
  });
}
