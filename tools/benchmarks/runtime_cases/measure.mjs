// What worker.py does, for onnxruntime-web: the same in Node and on a page. Everything goes over HTTP to whoever asked.

const LEAST = 4; // milliseconds that one reading takes at least

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array };

async function milliseconds(run, count) {
  const start = performance.now();
  for (let n = 0; n < count; n++) await run();
  return (performance.now() - start) / count;
}

async function compared(runs, seconds) {
  let quickest = Infinity;
  for (const run of runs) {
    for (let n = 0; n < 8; n++) quickest = Math.min(quickest, await milliseconds(run, 2));
  }
  const count = Math.max(1, Math.round(LEAST / Math.max(quickest, 1e-3)));
  const read = [];
  const end = performance.now() + 1000 * seconds;
  while (read.length < 5 || performance.now() < end) {
    const row = [];
    for (const run of runs) row.push(await milliseconds(run, count));
    read.push(row);
  }
  const ms = runs.map((_, place) => median(read.map((row) => row[place])));
  const least = runs.map((_, place) => Math.min(...read.map((row) => row[place])));
  return { ms, least, ratio: median(read.map((row) => row.at(-1) / row[0])), readings: read.length };
}

export async function measure(ort, base) {
  const bytes = async (place) => await (await fetch(`${base}/file?${encodeURIComponent(place)}`)).arrayBuffer();
  const send = (place, body) => fetch(`${base}/${place}`, { method: "POST", body });
  const job = await (await fetch(`${base}/job`)).json();
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "fatal";
  const feeds = {};
  for (const spec of job.inputs) {
    feeds[spec.name] = new ort.Tensor(spec.dtype, new ARRAYS[spec.dtype](await bytes(spec.file)), spec.shape);
  }
  const files = [];
  const runs = [];
  for (const [number, file] of job.files.entries()) {
    let stage = "open";
    try {
      const session = await ort.InferenceSession.create(new Uint8Array(await bytes(file)), {
        executionProviders: ["wasm"],
      });
      stage = "run";
      const made = await session.run(feeds, job.outputs);
      const outputs = [];
      for (const [index, name] of job.outputs.entries()) {
        const value = made[name];
        await send(`output-${number}-${index}.bin`, value.data.slice());
        outputs.push({ file: `output-${number}-${index}.bin`, dtype: value.type, shape: value.dims });
      }
      files.push({ outputs });
      runs.push(() => session.run(feeds, job.outputs));
    } catch (error) {
      files.push({ stage, why: `${error}` });
    }
  }
  const timed = runs.length === job.files.length ? await compared(runs, job.seconds) : {};
  await send("outcome.json", JSON.stringify({ files, ...timed }));
}
