// What the outputs of a student read as; the same rules as in lightning_distilbert/answers.py and its runtime.

const exps = (logits) => {
  const most = Math.max(...logits);
  return logits.map((logit) => Math.exp(logit - most));
};

export function softmax(logits) {
  const powers = exps(logits);
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

const logsumexp = (logits) => {
  const most = logits.reduce((best, logit) => Math.max(best, logit), -Infinity);
  return most + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - most), 0));
};

/**
 * Read the logits of a text.
 *
 * @param {number[]} logits One for each label.
 * @param {{task: string, options: object, thresholds: object, labels: string[]}} told What config.json says.
 * @returns {{label: (string|null), score: number, scores: {label: string, score: number, chosen: boolean}[]}} The best
 *   first; a student of regression has a score and no label.
 */
export function classify(logits, { task, options, thresholds, labels }) {
  const kind = options.problem_type ?? "single_label_classification";
  if (kind === "regression") return { label: null, score: logits[0], scores: [] };
  const multi = kind === "multi_label_classification";
  const temperature = (task === "IntentClassification" && thresholds.temperature) || 1;
  const values = multi
    ? logits.map((logit) => 1 / (1 + Math.exp(-logit)))
    : softmax(logits.map((logit) => logit / temperature));
  let best = values.indexOf(Math.max(...values));
  let score = values[best];
  if (task === "IntentClassification") {
    const beyond = labels.indexOf(options.out_of_scope ?? "oos");
    const nearest = values.reduce((a, value, b) => (b !== beyond && (a < 0 || value > values[a]) ? b : a), -1);
    const out = values[nearest] < (thresholds.out_of_scope ?? values[beyond]);
    best = out ? beyond : nearest;
    score = out ? 1 - values[nearest] : values[nearest];
  }
  const scores = values.map((value, place) => ({
    label: labels[place] ?? String(place),
    score: value,
    chosen: multi ? value > 0.5 : place === best,
  }));
  scores.sort((a, b) => b.chosen - a.chosen || b.score - a.score);
  return { label: labels[best] ?? String(best), score, scores };
}

/**
 * Find the best span of a window.
 *
 * @param {ArrayLike<number>} start The logits of a start, of all tokens of the window.
 * @param {ArrayLike<number>} end Those of an end.
 * @param {number} first The first token of the context.
 * @param {[number, number][]} places Begin and end of each token of the context in the text.
 * @param {number} longest Tokens of an answer at most.
 */
export function bestSpan(start, end, first, places, longest) {
  const best = { score: -Infinity, begin: 0, end: 0 };
  for (let i = 0; i < places.length; i++) {
    for (let j = i; j < Math.min(i + longest, places.length); j++) {
      const score = start[first + i] + end[first + j];
      if (score > best.score) Object.assign(best, { score, begin: places[i][0], end: places[j][1] });
    }
  }
  // as in training, over the tokens of the context and the first one, which stands for no answer
  const inside = (logits) => [logits[0], ...Array.from(places, (_, place) => logits[first + place])];
  const total = logsumexp(inside(start)) + logsumexp(inside(end));
  const none = start[0] + end[0];
  return { ...best, none, probability: Math.exp(best.score - total), noneProbability: Math.exp(none - total) };
}

/**
 * Choose the answer to a question from the spans of its windows.
 *
 * @param {object[]} spans Of `bestSpan`.
 * @param {string} text The whole text.
 * @param {number|null} threshold By how much no answer has to score higher; null where there always is an answer.
 * @returns {{answer: string, score: number, start: (number|null), end: (number|null)}}
 */
export function settle(spans, text, threshold) {
  const best = spans.reduce((a, b) => (b.score > a.score ? b : a));
  const none = spans.reduce((a, b) => (b.none < a.none ? b : a));
  let { begin, end } = best;
  while (/^[\p{Mn}\p{Me}]/u.test(text.slice(end, end + 2))) end += String.fromCodePoint(text.codePointAt(end)).length;
  if (begin === end || (threshold !== null && none.none - best.score > threshold)) {
    return { answer: "", score: none.noneProbability, start: null, end: null };
  }
  return { answer: text.slice(begin, end), score: best.probability, start: begin, end };
}
