// All parts together. Without scripts the table of points below is what there is.

if (exploration.points.length) {
  const part = id => document.getElementById(id);
  part('play').hidden = false;
  makeFrontier(part('frontier'), part('axis'));
  makeTiles(part('tiles'));
  makeLayers(part('groups'));
  makeGraph(part('graph'), part('box'));
  const path = makeCommand(part('command'), part('output'), part('copy'), part('copied'));
  const half = exploration.points.findIndex(point => point.budget <= 0.5);
  choose({point: Math.max(half, 0)});
  if (page.served) {
    makeRun(Object.fromEntries(['job', 'state', 'ran', 'progress', 'result', 'run', 'cancel'].map(id => [id, part(id)])), path);
  }
}
