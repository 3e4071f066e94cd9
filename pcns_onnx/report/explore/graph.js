// The graph, read only: boxes where the record places them, curves between, a bar for what stays of a width.

const BOX = {wide: 150, high: 42, across: 172, down: 62};

function makeGraph(place, words) {
  const {boxes, edges, collapsed} = exploration.drawing;
  if (!boxes.length) return;
  const columns = boxes.map(box => box.column);
  const least = Math.min(...columns), last = Math.max(...boxes.map(box => box.row));
  const side = 70;
  const x = box => side + (box.column - least) * BOX.across;
  const y = box => 4 + box.row * BOX.down;
  const wide = (Math.max(...columns) - least) * BOX.across + BOX.wide + 2 * side;
  const high = last * BOX.down + BOX.high + 8;
  const svg = drawn('svg', {viewBox: `0 0 ${wide} ${high}`, width: wide, height: high, role: 'img',
    'aria-label': 'the layers of the table above, from the inputs at the top to the outputs'});
  for (const [from, to] of edges) svg.append(drawn('path', {class: 'edge', d: curve(boxes[from], boxes[to])}));
  const kept = boxes.map((box, index) => {
    const inside = drawn('rect', {class: 'kept', x: x(box), y: y(box) + BOX.high - 6, width: 0, height: 6});
    const many = box.nodes > 1 ? ` × ${box.nodes}` : '';
    const frame = drawn('g', {class: 'box'},
      drawn('rect', {class: 'frame', x: x(box), y: y(box), width: BOX.wide, height: BOX.high, rx: 5}),
      drawn('text', {class: 'kind', x: x(box) + BOX.wide / 2, y: y(box) + 15}, box.kind + many),
      drawn('text', {class: 'name', x: x(box) + BOX.wide / 2, y: y(box) + 29}, shortened(box.label, 24)),
      drawn('title', {}, box.label));
    if (box.group >= 0) {
      frame.append(drawn('rect', {class: 'was', x: x(box), y: y(box) + BOX.high - 6, width: BOX.wide, height: 6}), inside);
    }
    frame.addEventListener('click', () => choose({group: box.group, box: index}));
    svg.append(frame);
    return {inside, frame};
  });
  place.append(svg);
  chosen.listeners.push(() => {
    const point = exploration.points[chosen.point];
    boxes.forEach((box, index) => {
      const picked = box.group >= 0 ? box.group === chosen.group : index === chosen.box && chosen.group < 0;
      kept[index].frame.classList.toggle('picked', picked);
      if (box.group < 0) return;
      const share = point.widths[box.group] / exploration.groups[box.group].width;
      kept[index].inside.setAttribute('width', share * BOX.wide);
    });
    words.textContent = described();
  });

  /** Down from the middle of one box to the middle of another; past what lies between, or back up, by the side. */
  function curve(a, b) {
    const [x1, y1, x2, y2] = [x(a) + BOX.wide / 2, y(a) + BOX.high, x(b) + BOX.wide / 2, y(b)];
    const rows = b.row - a.row;
    if (rows === 1 || (rows > 1 && Math.abs(x1 - x2) > BOX.wide / 2)) {
      return `M${x1} ${y1}C${x1} ${y1 + 18} ${x2} ${y2 - 18} ${x2} ${y2}`;
    }
    const out = Math.max(x1, x2) + BOX.wide / 2 + Math.min(20 + 6 * Math.abs(rows), 60);
    const [from, to] = [y1 - BOX.high / 2, y2 + BOX.high / 2];
    return `M${x1 + BOX.wide / 2} ${from}C${out} ${from} ${out} ${to} ${x2 + BOX.wide / 2} ${to}`;
  }

  function described() {
    const group = exploration.groups[chosen.group];
    if (group) {
      const read = group.readers.length ? `; read by ${list(group.readers)}` : '';
      const shared = group.coupled ? '; several blocks share its channels' : '';
      return `${list(group.writers)}: ${group.width * group.unit} channels, ${percent(group.macs)} of the MACs` +
        `, ${group.parameters.toLocaleString('en')} parameters${read}${shared}`;
    }
    const box = boxes[chosen.box];
    if (!box) return '';
    const why = box.reason ? ` keeps its width: ${box.reason}` : collapsed ? ' keeps its width' : '';
    return `${box.label} (${box.kind})${why}`;
  }
}

function list(names) {
  return names.length <= 6 ? names.join(', ') : `${names.slice(0, 5).join(', ')} and ${names.length - 5} others`;
}
