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
    place.textContent = line();
  };
  if (output) {
    output.addEventListener('input', () => {
      output.dataset.own = output.value === '' ? '' : 'yes';  // emptied, it is the page's again
      place.textContent = line();
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
  return path;
}
