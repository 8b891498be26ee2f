// The page: what is typed goes to a worker for each student, what it finds is shown. Texts are shown as text alone.

const PAUSE = 120; // milliseconds without a key before a student is asked
const RECENT = 20; // runs of which the median is shown
const SHOWN = 5; // labels
const AROUND = 600; // characters shown on either side of an answer

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const milliseconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** One student: its fields, its worker, and what it found last. */
class Pane {
  #last = 0; // the number of the newest question; answers to older ones are dropped
  #timer;
  #recent = [];

  constructor(role, show) {
    this.root = document.getElementById(role);
    this.show = show;
    this.fields = [...this.root.querySelectorAll("textarea, input")];
    for (const field of this.fields) {
      field.addEventListener("input", () => this.#soon());
      field.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && field.tagName === "INPUT") this.ask();
      });
    }
    this.worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: role });
    this.worker.onmessage = ({ data }) => this.#hear(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      const why = event.message ? ` (${event.message})` : "";
      this.#fail(`The student's worker did not start${why}. Is transformers.js installed? npm ci --ignore-scripts`);
    };
    const threads = Number(new URLSearchParams(location.search).get("threads")) || 0;
    this.worker.postMessage({ load: role, threads });
  }

  #part(selector) {
    return this.root.querySelector(selector);
  }

  #soon() {
    this.root.classList.add("stale");
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.ask(), PAUSE);
  }

  ask() {
    clearTimeout(this.#timer);
    const values = Object.fromEntries(this.fields.map((field) => [field.name, field.value]));
    this.#last += 1;
    if (Object.values(values).every((value) => value.trim())) {
      this.root.classList.add("stale");
      this.worker.postMessage({ id: this.#last, ...values });
    } else {
      this.#display([]);
    }
  }

  #hear(data) {
    if (data.error) {
      this.#fail(data.error);
    } else if (data.total) {
      const bar = this.#part("progress");
      [bar.max, bar.value] = [data.total, data.loaded];
      this.#part(".loading span").textContent = `${megabytes(data.loaded)} of ${megabytes(data.total)}`;
    } else if (data.ready) {
      const { bytes, int8, threads } = data.ready;
      const facts = [megabytes(bytes), int8 ? "8 bits" : "32 bits", plural(threads, "thread")];
      this.#part(".facts").textContent = facts.join(" · ");
      this.#part(".loading").hidden = true;
      this.#part(".pane").hidden = this.#part("footer").hidden = false;
      this.ask();
    } else if (data.id === this.#last) {
      this.#recent = [...this.#recent.slice(1 - RECENT), data.ms];
      const of = this.#recent.length > 1 ? ` · median of ${this.#recent.length}: ${milliseconds(median(this.#recent))}` : "";
      this.#part(".ms").textContent = milliseconds(data.ms) + of;
      this.root.dataset.ms = data.ms;
      this.#display(this.show(data.found, Object.fromEntries(this.fields.map((field) => [field.name, field.value]))));
    }
  }

  #display(parts) {
    this.root.classList.remove("stale");
    this.#part(".error").hidden = true;
    this.#part(".found").replaceChildren(...parts);
    const mark = this.#part(".found mark");
    if (mark) mark.parentElement.scrollTop = mark.offsetTop - mark.parentElement.clientHeight / 2; // not the page itself
    this.root.dataset.shown = this.#last; // what is measured and tested waits for it
  }

  #fail(message) {
    this.#part(".loading").hidden = true;
    this.#display([]);
    const place = this.#part(".error");
    place.textContent = message;
    place.hidden = false;
  }
}

function labels(found) {
  const parts = [];
  if (found.label === null) {
    parts.push(element("p", String(Number(found.score.toPrecision(4))), "answer"));
  } else {
    const list = element("ol");
    for (const { label, score, chosen } of found.scores.slice(0, SHOWN)) {
      const item = element("li", "", chosen ? "chosen" : "");
      const bar = element("span", label, "label");
      bar.style.background = `linear-gradient(to right, var(--bar) ${100 * score}%, var(--track) 0)`;
      item.append(bar, element("span", percent(score), "score"));
      item.dataset.score = score;
      list.append(item);
    }
    parts.push(list);
    if (found.scores.length > SHOWN) parts.push(element("p", `and ${found.scores.length - SHOWN} more`, "note"));
  }
  if (found.cut) parts.push(element("p", `Of the text's ${plural(found.tokens, "token")} the first were read.`, "note"));
  return parts;
}

function answer(found, { text }) {
  const head = element("p", found.answer || "No answer in this text", "answer");
  head.dataset.score = found.score;
  head.append(element("small", percent(found.score)));
  if (found.start === null) return [head];
  head.dataset.start = found.start;
  const [begin, end] = [Math.max(0, found.start - AROUND), Math.min(text.length, found.end + AROUND)];
  const passage = element("div", begin ? "…" : "", "passage");
  passage.tabIndex = 0; // it scrolls, so the keyboard has to reach it
  passage.setAttribute("role", "group");
  passage.setAttribute("aria-label", "The answer in its text");
  passage.append(
    text.slice(begin, found.start), element("mark", text.slice(found.start, found.end)), text.slice(found.end, end),
    end < text.length ? "…" : "",
  );
  const read = `${plural(found.tokens, "token")} in ${plural(found.windows, "window")}`;
  return [head, passage, element("p", read, "note")];
}

new Pane("classifier", labels);
new Pane("reader", answer);
