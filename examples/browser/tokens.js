// Texts as tokens, each with its place in the text, which transformers.js does not tell.

/**
 * @typedef {{ids: number[], places: ([number, number][] | null)}} Pieces
 * Tokens without the special ones around them, and begin and end of each in UTF-16 units of the text.
 */

/**
 * Tokenise a text.
 *
 * WordPiece splits a text into words and each word by itself, and its normalisation treats each character by itself:
 * so the place of every token can be told. Other tokenizers give tokens without places.
 *
 * @param {object} tokenizer A tokenizer of transformers.js.
 * @param {string} text
 * @returns {Pieces}
 */
export function split(tokenizer, text) {
  const inner = tokenizer._tokenizer;
  if (inner.tokenizer.model.type !== "WordPiece") {
    return { ids: tokenizer.encode(text, { add_special_tokens: false }), places: null };
  }
  const found = { ids: [], places: [] };
  let at = 0;
  // texts may name special tokens, such as [SEP], which are tokens as they stand
  for (const section of inner.splitter_unnormalized.split(text)) {
    const added = inner.added_tokens_map.get(section);
    if (added) {
      found.ids.push(added.id);
      found.places.push([at, at + section.length]);
    } else {
      splitWords(inner, section, at, found);
    }
    at += section.length;
  }
  return found;
}

function splitWords(inner, section, at, found) {
  let plain = ""; // the section as the normaliser leaves it
  const begins = [], ends = []; // where each of its units came from
  for (const letter of section) {
    const left = inner.normalizer ? inner.normalizer(letter) : letter;
    for (let unit = 0; unit < left.length; unit++) {
      begins.push(at);
      ends.push(at + letter.length);
    }
    plain += left;
    at += letter.length;
  }
  const { continuing_subword_prefix: prefix } = inner.model.config;
  let cursor = 0;
  for (const word of inner.pre_tokenizer(plain)) {
    cursor = plain.indexOf(word, cursor);
    const pieces = inner.model([word]);
    let from = cursor;
    pieces.forEach((piece, number) => {
      // an unknown word is one token, whatever its length
      const length = pieces.length === 1 ? word.length : piece.length - (number ? prefix.length : 0);
      found.ids.push(inner.model.tokens_to_ids.get(piece) ?? inner.model.unk_token_id);
      found.places.push([begins[from], ends[from + length - 1]]);
      from += length;
    });
    cursor += word.length;
  }
}

/**
 * Learn which special tokens stand before, between and after texts.
 *
 * transformers.js cuts long texts at the end, with the special token there, and cannot read in windows: so the page
 * puts these tokens around what it keeps.
 *
 * @param {object} tokenizer A tokenizer of transformers.js.
 * @returns {{single: number[][], pair: number[][]}} Before and after a text; before, between and after two.
 */
export function frames(tokenizer) {
  const inside = tokenizer.encode("a", { add_special_tokens: false });
  const around = (ids, count) => {
    const parts = [[]];
    for (let place = 0; place < ids.length; ) {
      if (parts.length <= count && inside.every((id, offset) => ids[place + offset] === id)) {
        parts.push([]);
        place += inside.length;
      } else {
        parts.at(-1).push(ids[place++]);
      }
    }
    return parts;
  };
  return { single: around(tokenizer.encode("a"), 1), pair: around(tokenizer.encode("a", { text_pair: "a" }), 2) };
}

/**
 * Part a question's context into overlapping windows.
 *
 * @param {number} question Tokens of the question.
 * @param {number} context Tokens of the context.
 * @param {{special: number, longest: number, stride: number}} limits Special tokens of a pair, tokens of a window at
 *   most, and tokens that a window shares with the one before it.
 * @returns {[number, number][]} The first token of the context in each window, and the one after its last.
 */
export function windows(question, context, { special, longest, stride }) {
  const room = longest - special - question;
  if (room < 1 || (context > room && room <= stride)) {
    throw new Error(
      `The question leaves room for ${Math.max(room, 0)} tokens of the text, and windows share ${stride}. Ask a shorter one.`,
    );
  }
  const found = [];
  for (let begin = 0; ; begin += room - stride) {
    const end = Math.min(begin + room, context);
    found.push([begin, end]);
    if (end === context) return found;
  }
}
