// A row for every group: its widths as bars, and what it loses.

function makeLayers(place) {
  const widest = Math.max(...exploration.groups.map(group => group.width * group.unit));
  const head = ['layer', '', 'width', 'loses', 'of the error'].map(text => element('span', {}, text));
  for (const cell of head.slice(2)) cell.className = 'number';
  place.append(element('div', {class: 'group head'}, ...head));
  const rows = exploration.groups.map((group, index) => {
    const others = group.writers.length - 1;
    const button = element('button', {type: 'button'}, group.name + (others ? ` and ${others} other${others > 1 ? 's' : ''}` : ''));
    button.addEventListener('click', () => choose({group: chosen.group === index ? -1 : index}));
    const kept = element('div');
    const bar = element('div', {class: 'bar', 'aria-hidden': 'true'}, kept);
    bar.style.width = `${Math.max(100 * group.width * group.unit / widest, 3)}%`;
    const numbers = ['width', 'loses', 'share'].map(() => element('span', {class: 'number'}));
    place.append(element('div', {class: 'group'}, button, bar, ...numbers));
    return {button, kept, numbers};
  });
  chosen.listeners.push(() => {
    const point = exploration.points[chosen.point];
    rows.forEach(({button, kept, numbers}, index) => {
      const group = exploration.groups[index];
      button.setAttribute('aria-pressed', index === chosen.group);
      kept.style.width = `${100 * point.widths[index] / group.width}%`;
      numbers[0].textContent = `${group.width * group.unit} → ${point.widths[index] * group.unit}`;
      numbers[1].textContent = percent(point.losses[index], 2);
      numbers[2].textContent = percent(point.shares[index]);
    });
  });
}
