// The command line of the point that is chosen, as a shell takes it.

/** A word as Python's shlex.quote has it. */
function quoted(word) {
  if (word && /^[\w@%+=:,./-]+$/.test(word)) return word;
  return `'${word.replaceAll("'", `'"'"'`)}'`;
}

function makeCommand(place, output, copy, copied) {
  const point = () => exploration.points[chosen.point];
  const path = () => (output && output.dataset.own ? output.value : point().output);
  const line = () => `${point().command} -o ${quoted(path())}`;
  const show = () => {
    if (output && !output.dataset.own) output.value = point().output;
    // An option is not broken at its hyphens; paths may be.
    const words = line().split(' ').map(word => (word.startsWith('-') ? element('span', {}, word) : word));
    place.replaceChildren(...words.flatMap((word, index) => (index ? [' ', word] : [word])));
  };
  if (output) {
    output.addEventListener('input', () => {
      output.dataset.own = output.value === '' ? '' : 'yes';  // emptied, it is the page's again
      show();
    });
  }
  copy.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(line());
      copied.textContent = 'copied';
    } catch {
      getSelection().selectAllChildren(place);
      copied.textContent = document.execCommand('copy') ? 'copied' : 'marked: copy it with Ctrl-C';
    }
  });
  chosen.listeners.push(() => {
    copied.textContent = '';
    show();
  });
  return {
    get: path,
    set(text) {
      output.value = text;
      output.dispatchEvent(new Event('input'));
    },
  };
}
