// A served page has its server run the command, and asks how far it is; what runs is found again after a reload.

const EVERY = 700;

function makeRun(parts, path) {
  let waiting = null, known = null;

  async function ask(where, body) {
    const options = body === undefined ? {} :
      {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body)};
    const answer = await fetch(where, {...options, cache: 'no-store'});
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.error);
    return told;
  }

  async function act(where, body) {
    try {
      show(await ask(where, body));
    } catch (error) {
      fail(error);
    }
  }

  function fail(error) {
    parts.job.hidden = false;
    parts.state.textContent = error instanceof TypeError ?
      'The server does not answer: it has been stopped, or is busy.' : error.message;
    schedule(error instanceof TypeError);
  }

  /** What runs, or ran, when the page is loaded: its point is the one that is shown. */
  function foundAgain(job) {
    choose({point: job.point});
    path.set(job.path);
    return job.state;
  }

  function schedule(again) {
    clearTimeout(waiting);
    waiting = again ? setTimeout(() => act('status'), EVERY) : null;
  }

  function show(job) {
    const runs = job.state === 'running';
    parts.run.disabled = runs || !page.runs;
    parts.cancel.hidden = !runs;
    parts.job.hidden = job.state === 'idle';
    if (known === null) known = job.state === 'idle' ? 'idle' : foundAgain(job);
    if (job.state === 'idle') return;
    parts.ran.textContent = job.command;
    parts.progress.hidden = !runs;
    parts.result.hidden = !job.output;
    parts.result.textContent = job.output;
    parts.state.className = job.state === 'done' ? 'good' : job.state === 'failed' ? 'bad' : '';
    const took = `${job.seconds.toFixed(0)} s`;
    parts.state.textContent = {
      running: `Running: ${job.latest || 'starting'}`, done: `Done in ${took}: ${job.path}`,
      failed: `Failed after ${took} (exit code ${job.code}): ${job.latest}`, cancelled: `Cancelled after ${took}.`,
    }[job.state];
    const share = /(\d[\d,]*) of (\d[\d,]*)/.exec(job.latest || '');
    if (share) parts.progress.value = share[1].replaceAll(',', '') / share[2].replaceAll(',', '');
    else parts.progress.removeAttribute('value');
    schedule(runs);
  }

  parts.run.addEventListener('click', () => {
    parts.run.disabled = true;
    act('run', {point: chosen.point, output: path.get()});
  });
  parts.cancel.addEventListener('click', () => act('cancel', {}));
  act('status');
}
