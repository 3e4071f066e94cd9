// Times models in onnxruntime-web (wasm, one thread): node onnxruntime_web.mjs LIBRARY DESCRIPTOR. Commands come as
// lines of JSON on stdin, answers go as lines to the descriptor; profiles go to stdout, where wasm prints them.
import { readFileSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const ort = await import(pathToFileURL(process.argv[2]));
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "fatal";

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: Uint16Array, int64: BigInt64Array, uint64: BigUint64Array,
  int32: Int32Array, uint32: Uint32Array, int16: Int16Array, uint16: Uint16Array, int8: Int8Array, uint8: Uint8Array,
  bool: Uint8Array,
};
const models = new Map();

function bytes(file) {
  const content = readFileSync(file);
  return content.buffer.slice(content.byteOffset, content.byteOffset + content.length);
}

// Seconds of one run: what the process took, which others that keep the processor busy do not count for.
async function seconds({ session, feeds }) {
  const [start, own] = [performance.now(), process.cpuUsage()];
  await session.run(feeds);
  const used = process.cpuUsage(own);
  return Math.min((performance.now() - start) / 1e3, (used.user + used.system) / 1e6);
}

const commands = {
  async open({ id, file, profiled }) {
    const session = await ort.InferenceSession.create(new Uint8Array(bytes(file)), {
      executionProviders: ["wasm"],
      enableProfiling: profiled,
    });
    models.set(id, { session, feeds: {} });
    return { inputs: session.inputMetadata.map(({ name, type }) => ({ name, type: type ?? "" })) };
  },
  async feed({ id, name, type, shape, file }) {
    models.get(id).feeds[name] = new ort.Tensor(type, new ARRAYS[type](bytes(file)), shape);
  },
  async warm({ id, seconds: least }) {
    const end = performance.now() + 1e3 * least;
    const { session, feeds } = models.get(id);
    let runs = 0;
    for (; runs < 4 || performance.now() < end; runs++) await session.run(feeds);
    return { runs };
  },
  async run({ id }) {
    return { seconds: await seconds(models.get(id)) };
  },
  async profile({ id }) {
    models.get(id).session.endProfiling();
  },
  async close({ id }) {
    await models.get(id)?.session.release();
    models.delete(id);
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...words } = JSON.parse(line);
  let answer;
  try {
    answer = (await commands[command](words)) ?? {};
  } catch (error) {
    answer = { error: `${error?.message ?? error}` };
  }
  writeSync(Number(process.argv[3]), `${JSON.stringify(answer)}\n`);
}
process.exit(0);
