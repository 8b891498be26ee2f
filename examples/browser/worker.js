// One student, loaded and run by transformers.js beside the page, so that typing never waits for it.

import { AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer, Tensor, env }
  from "./node_modules/@huggingface/transformers/dist/transformers.min.js";
import { bestSpan, classify, settle } from "./answers.js";
import { frames, split, windows } from "./tokens.js";

const RUNTIME = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
const MODELS = new URL("./models/", import.meta.url).pathname; // transformers.js takes a whole URL for a remote one
// the files that an export writes, as transformers.js names them
const DTYPES = { "model_int8.onnx": "int8", "model.onnx": "fp32" };
const ROLES = {
  classifier: { tasks: ["TextClassification", "IntentClassification"], model: AutoModelForSequenceClassification },
  reader: { tasks: ["QuestionAnswering"], model: AutoModelForQuestionAnswering },
};

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = MODELS;
env.useBrowserCache = env.useWasmCache = false; // a student exported anew is the one that runs
env.fetch = (url, options) => fetch(url, options).then((response) => watched(response, String(url)));
env.backends.onnx.wasm.wasmPaths = {
  mjs: `${RUNTIME}ort-wasm-simd-threaded.mjs`,
  wasm: `${RUNTIME}ort-wasm-simd-threaded.wasm`,
};

let student;
let waiting = null;
let running = false;

self.onmessage = async ({ data }) => {
  try {
    if (data.load) {
      student = await load(data.load, data.threads);
      self.postMessage({ ready: student.facts });
    } else {
      waiting = data; // of the questions asked while one runs only the last is answered
      if (!running) await answerAll();
    }
  } catch (error) {
    self.postMessage({ error: error?.message ?? String(error) });
  }
};

async function answerAll() {
  running = true;
  try {
    while (waiting) {
      const asked = waiting;
      waiting = null;
      const begin = performance.now();
      const found = await student.answer(asked, () => waiting !== null);
      if (found) self.postMessage({ id: asked.id, found, ms: performance.now() - begin });
    }
  } finally {
    running = false;
  }
}

async function load(role, threads) {
  if (typeof WebAssembly !== "object") throw new Error("This browser has no WebAssembly, which runs the model.");
  // without isolation, for which the server has to send two headers, there is one thread
  const cores = Math.min(4, navigator.hardwareConcurrency || 1);
  env.backends.onnx.wasm.numThreads = self.crossOriginIsolated ? threads || cores : 1;
  const manifest = await json(role, "manifest.json");
  const { tasks, model: Model } = ROLES[role];
  if (!tasks.includes(manifest.task)) {
    throw new Error(`This student is of ${manifest.task}, and here is the place for ${tasks.join(" or ")}.`);
  }
  const dtype = DTYPES[manifest.model];
  if (!dtype) throw new Error(`${manifest.model} is no ONNX file. Export the student with --format onnx-int8.`);
  const config = await json(role, "config.json");
  const tokenizer = await AutoTokenizer.from_pretrained(role);
  const model = await Model.from_pretrained(role, { subfolder: "", dtype, device: "wasm" }).catch((error) => {
    throw new Error(`${manifest.model} cannot be run here. Is the file whole? (${error?.message ?? error})`);
  });
  const inputs = manifest.inputs.map(({ name }) => name);
  const details = config.lightning_distilbert;
  const told = {
    task: manifest.task,
    options: details.task.init_args ?? {},
    thresholds: details.thresholds ?? {},
    labels: details.labels ?? Object.values(config.id2label ?? {}),
  };
  const facts = {
    bytes: manifest.files[manifest.model].bytes,
    int8: dtype === "int8",
    threads: env.backends.onnx.wasm.numThreads,
  };
  const parts = { tokenizer, frame: frames(tokenizer), run: (ids, types) => run(model, inputs, ids, types), told };
  const answer = role === "reader" ? reader(parts) : classifier(parts);
  // the first run sets up buffers
  await parts.run(parts.frame.single.flat(), null);
  return { facts, answer };
}

function classifier({ tokenizer, frame, run, told }) {
  const room = tokenizer.model_max_length - frame.single.flat().length;
  return async ({ text }) => {
    const { ids } = split(tokenizer, text);
    const [before, after] = frame.single;
    const { logits } = await run([...before, ...ids.slice(0, room), ...after], null);
    return { ...classify(Array.from(logits.data), told), tokens: ids.length, cut: ids.length > room };
  };
}

function reader({ tokenizer, frame, run, told }) {
  const { no_answer = false, max_answer_length = 30, doc_stride = 128, max_question_length = 64 } = told.options;
  const [before, between, after] = frame.pair;
  const limits = {
    special: frame.pair.flat().length,
    longest: tokenizer.model_max_length,
    stride: doc_stride,
  };
  return async ({ question, text }, superseded) => {
    const asked = split(tokenizer, question).ids.slice(0, max_question_length);
    const context = split(tokenizer, text);
    if (!context.places) throw new Error("Only WordPiece tokenizers tell where in a text an answer stands.");
    const lead = [...before, ...asked, ...between];
    const parts = windows(asked.length, context.ids.length, limits);
    const spans = [];
    for (const [begin, end] of parts) {
      const ids = [...lead, ...context.ids.slice(begin, end), ...after];
      const { start_logits, end_logits } = await run(ids, ids.map((_, place) => Number(place >= lead.length)));
      const places = context.places.slice(begin, end);
      spans.push(bestSpan(start_logits.data, end_logits.data, lead.length, places, max_answer_length));
      if (parts.length > 1) {
        await new Promise((resolve) => setTimeout(resolve)); // a newer question may have come
        if (superseded()) return null;
      }
    }
    const threshold = no_answer ? (told.thresholds.no_answer ?? 0) : null;
    return { ...settle(spans, text, threshold), tokens: context.ids.length, windows: parts.length };
  };
}

function run(model, inputs, ids, types) {
  const tensor = (values) => new Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
  const given = {
    input_ids: tensor(ids),
    attention_mask: tensor(ids.map(() => 1)),
    token_type_ids: tensor(types ?? ids.map(() => 0)),
  };
  return model(Object.fromEntries(inputs.map((name) => [name, given[name]])));
}

async function json(role, file) {
  const response = await fetch(`${MODELS}${role}/${file}`);
  if (response.status === 404) throw new Error(`No ${role} is served here. Start serve.py with --${role} FOLDER.`);
  if (!response.ok) throw new Error(`${role}/${file}: the server says ${response.status}.`);
  return response.json();
}

/** Report how much of a model file has come. */
function watched(response, url) {
  const total = Number(response.headers.get("Content-Length"));
  if (!response.ok || !url.endsWith(".onnx") || !total) return response;
  let loaded = 0;
  const count = new TransformStream({
    transform(chunk, controller) {
      loaded += chunk.byteLength;
      self.postMessage({ loaded, total });
      controller.enqueue(chunk);
    },
  });
  return new Response(response.body.pipeThrough(count), { headers: response.headers, status: response.status });
}
