// The page of the server: texts and files of texts are sent to its API, answers and what speaks for them are shown.
// All that comes from outside (texts, labels, names, messages) goes into the page as text, never as HTML.

const DELAY = 300; // milliseconds without a key pressed until the text is sent
const HOVER = 150; // milliseconds that a label is pointed at or focused until it is explained
const SHOWN = 5; // labels of a task, unless all are asked for
const FILTERED = 6; // tasks from which on they can be filtered
const FAINTEST = 0.05; // share of the strongest effect below which a token is not marked
const KEPT = 100; // explanations
const CHUNK = 200; // texts of a file in a request
const ROWS = 100; // of a file in the table
const LARGEST = 20e6; // bytes of a file
const KEY = "ytuning-key";

const byId = (id) => document.getElementById(id);
const many = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/** An error whose message is shown to the user. */
class Problem extends Error {}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A text of unknown direction, such as a label. */
const isolated = (...parts) => element("bdi", {}, ...parts);

/** A label that breaks after the signs that join its words, not inside a word. */
function joined(label) {
  const parts = label.match(/[^_/]*[_/]+|[^_/]+/g) ?? [];
  return isolated(...parts.flatMap((part) => [part, element("wbr")]));
}

// --- the server ------------------------------------------------------------------------------------------------------

let key = remembered();

function remembered() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // where a browser keeps nothing, the key lasts as long as the page
  }
}

/** The reply to a request. Waits for a key, and where the server is busy; `say` is told of it, and "" when it is over. */
async function ask(path, body, { signal, say = () => {} } = {}) {
  for (;;) {
    const used = key;
    const reply = await send(path, body, used, signal);
    if (reply.status === 401) {
      say("Waiting for an API key.");
      await anotherKey(used, signal);
    } else if (reply.status === 429 || (reply.status === 503 && reply.headers.has("Retry-After"))) {
      const seconds = patience(reply.headers.get("Retry-After"));
      say(`The server is busy. Trying again in ${seconds} s.`);
      await pause(seconds, signal);
    } else {
      byId("access").hidden = true;
      return await content(reply, signal);
    }
    say("");
  }
}

async function send(path, body, used, signal) {
  const headers = used ? { Authorization: `Bearer ${used}` } : {};
  const posted = { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
  try {
    return await fetch(path, { ...(body ? posted : { headers }), signal, cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem("The server cannot be reached. Is it still running?");
  }
}

async function content(reply, signal) {
  let read = null;
  try {
    read = await reply.json();
  } catch (error) {
    if (signal?.aborted) throw error;
  }
  if (reply.ok && read !== null) return read;
  if (reply.ok) throw new Problem("The server's reply could not be read.");
  throw new Problem(String(read?.error || `The server failed: ${reply.status} ${reply.statusText}`.trim()));
}

/** Whole seconds of a Retry-After header, which is a number or a date. */
function patience(header) {
  const seconds = header === null || header.trim() === "" ? 1 : Number(header);
  const wait = Number.isFinite(seconds) ? seconds : (Date.parse(header) - Date.now()) / 1000;
  return Math.max(1, Math.ceil(wait || 1));
}

/** Until `start` calls its argument; rejected when the signal aborts. */
function until(start, signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) reject(signal.reason);
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
    start(resolve);
  });
}

const pause = (seconds, signal) => until((done) => setTimeout(done, 1000 * seconds), signal);

async function anotherKey(used, signal) {
  if (key !== used) return; // it was entered while the request was on its way
  const asked = byId("access").hidden;
  byId("key-note").textContent = used ? "The server does not accept this key." : "This server needs an API key.";
  byId("access").hidden = false;
  if (asked && document.activeElement === document.body) byId("key").focus();
  await until((done) => byId("key-form").addEventListener("submit", () => key !== used && done(), { signal }), signal);
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const entered = byId("key").value.trim();
  if ([...entered].some((character) => character < "!" || character > "~")) {
    byId("key-note").textContent = "A key contains only ASCII letters, digits and punctuation.";
    return;
  }
  if (!entered || entered === key) return;
  key = entered;
  byId("key").value = "";
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // see remembered()
  }
});

/** Each task's answers by its name, a list with one for each item or null where the task could not be asked.

    An item is a list of two texts, the second of which may be empty: then tasks on pairs are not asked. */
async function classify(items, chosen, options) {
  const found = { answers: new Map(), total: 0, encoder: 0, tokens: 0 };
  const forms = [chosen.filter((task) => !task.pair), chosen.filter((task) => task.pair)];
  await Promise.all(
    forms.map(async (form, paired) => {
      const places = [...items.keys()].filter((place) => items[place].slice(0, paired + 1).every((text) => text.trim()));
      if (!form.length || !places.length) return;
      const input = places.map((place) => (paired ? items[place] : items[place][0]));
      const names = chosen === tasks ? null : form.map((task) => task.name);
      const reply = await ask("classify_many", { input, tasks: names }, options);
      for (const { task, results } of reply.data) {
        const answers = Array(items.length).fill(null);
        places.forEach((place, number) => (answers[place] = results[number]));
        found.answers.set(task, answers);
      }
      found.total += reply.timing.total;
      found.encoder += reply.timing.encoder;
      found.tokens += reply.usage.total_tokens;
    }),
  );
  return found;
}

// --- a text ----------------------------------------------------------------------------------------------------------

let tasks = [];
let cards = [];
let batch = CHUNK;
let timer = 0;
let running = null; // the AbortController of the answers that are waited for
let shown = ["", ""]; // the texts that the answers on the page are of

/** Load the tasks; then answer a text that is there already, if that was asked for or happens while typing. */
async function begin(asked = false) {
  try {
    const info = await ask("info", null, { say: (text) => (byId("about").textContent = text) });
    tasks = info.tasks;
    batch = Math.min(CHUNK, info.max_client_batch_size || CHUNK);
    describe(info);
    cards = tasks.map(cardOf);
    byId("cards").replaceChildren(...cards.map((card) => card.article));
    select();
    if (tasks.length && (asked || byId("typing").checked) && byId("first").value.trim()) await answer();
  } catch (error) {
    tell("problem", error);
    byId("about").textContent = "The tasks could not be loaded.";
  }
}

function describe(info) {
  const encoders = new Set(tasks.map((task) => task.encoder)).size;
  const held = tasks.length ? `${many(tasks.length, "task")} on ${many(encoders, "encoder")}` : "no tasks";
  byId("about").textContent = `The server has ${held}. Version ${info.version}.`;
  const paired = tasks.some((task) => task.pair);
  byId("pair").hidden = byId("pair-field").hidden = !paired;
  const all = tasks.every((task) => task.pair);
  byId("second-note").textContent = all ? "Second text" : "Second text, for tasks on two texts";
  byId("filtering").hidden = tasks.length < FILTERED;
  byId("file").hidden = byId("hint").hidden = !tasks.length;
}

/** A message in words; an error that is not a Problem is a fault of this page, which the console shows. */
function tell(place, error) {
  byId(place).textContent = error instanceof Problem ? error.message : `This page failed: ${error.message}`;
  if (!(error instanceof Problem)) console.error(error);
}

async function answer() {
  clearTimeout(timer);
  running?.abort();
  running = null;
  if (!tasks.length) return await begin(true);
  const item = [byId("first").value, byId("second").value];
  const controller = (running = new AbortController());
  const began = performance.now();
  byId("problem").textContent = "";
  byId("cards").classList.add("busy");
  try {
    const say = (text) => (byId("latency").textContent = text);
    const found = await classify([item], tasks, { signal: controller.signal, say });
    if (running !== controller) return;
    show(item, found, performance.now() - began);
  } catch (error) {
    if (!controller.signal.aborted) tell("problem", error);
  } finally {
    if (running === controller) byId("cards").classList.remove("busy");
  }
}

function show(item, found, milliseconds) {
  explained.abort();
  explained = new AbortController();
  forget();
  shown = item;
  for (const card of cards) {
    card.result = found.answers.get(card.task.name)?.[0] ?? null;
    fill(card);
  }
  const share = found.total ? Math.round((100 * found.encoder) / found.total) : 0;
  const server = `${Math.round(1000 * found.total)} ms on the server (${share} % of that in the encoder)`;
  const times = `The answer took ${Math.round(milliseconds)} ms: ${server}. The encoder read ${many(found.tokens, "token")}.`;
  byId("latency").textContent = found.answers.size ? times : "";
  const first = cards.filter((card) => card.result && !card.article.hidden).slice(0, SHOWN);
  byId("live").textContent = first.map((card) => `${card.task.name}: ${inWords(card.result.answer)}`).join("; ");
}

function inWords(given) {
  if (given === null) return "no answer";
  if (Array.isArray(given)) return given.length ? given.join(", ") : "no label";
  return typeof given === "number" ? String(Number(given.toPrecision(4))) : given;
}

for (const field of [byId("first"), byId("second")]) {
  field.addEventListener("input", () => {
    clearTimeout(timer);
    if (byId("typing").checked) timer = setTimeout(answer, DELAY);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    answer();
  });
}
byId("classify").addEventListener("click", answer);

// --- the tasks -------------------------------------------------------------------------------------------------------

function cardOf(task, number) {
  const count = task.labels.length;
  const labels = many(count, "label");
  const kinds = { single: `one of ${labels}`, ordinal: `one on a scale of ${count}`, multi: `any of ${labels}` };
  const kind = `${kinds[task.kind] ?? "a number"}${task.pair ? ", of two texts" : ""}`;
  const card = { task, result: null, whole: false };
  card.answer = element("p", { className: "answer" });
  card.list = element("div", { className: "rows", role: "toolbar", ariaLabel: `Labels of ${task.name}` });
  card.list.ariaOrientation = "vertical";
  card.more = element("button", { className: "more", type: "button", hidden: true });
  card.note = element("p", { className: "note" });
  const title = element("h3", { id: `task-${number}` }, isolated(task.name));
  const parts = [title, element("p", { className: "note" }, kind), card.answer, card.list, card.more, card.note];
  card.article = element("article", { className: "task" }, ...parts);
  card.article.setAttribute("aria-labelledby", title.id);
  card.more.addEventListener("click", () => {
    card.whole = !card.whole;
    fill(card);
  });
  card.list.addEventListener("keydown", (event) => walk(card, event));
  fill(card);
  return card;
}

function fill(card) {
  const { task, result } = card;
  const focused = card.rows?.find((row) => row.button === document.activeElement)?.label;
  const entries = result ? entriesOf(card) : [];
  card.rows = entries.map((entry) => ({ label: entry.label, button: rowOf(card, entry) }));
  card.list.replaceChildren(...card.rows.map((row) => row.button));
  card.list.hidden = !entries.length;
  card.list.classList.toggle("many", card.whole);
  const place = Math.max(0, card.rows.findIndex((row) => row.label === focused));
  if (card.rows.length) card.rows[place].button.tabIndex = 0;
  if (focused !== undefined) card.rows[place]?.button.focus({ preventScroll: true });
  press();
  card.more.hidden = !result || task.labels.length <= SHOWN;
  card.more.textContent = card.whole ? "Fewer labels" : `All ${task.labels.length} labels`;
  card.more.setAttribute("aria-expanded", String(card.whole));
  const none = task.kind === "multi" ? "No label is above its threshold." : "No answer, because the confidence is too low.";
  const empty = result && (result.answer === null || result.answer.length === 0);
  card.answer.classList.toggle("none", !result || empty);
  const missing = task.pair && byId("first").value.trim() ? "This task needs a second text." : "–";
  card.answer.replaceChildren(...(result ? (empty ? [none] : given(result.answer)) : [missing]));
  const read = `The text is too long. The task reads only its first ${many(task.max_input_length, "token")}.`;
  card.note.textContent = result?.truncated ? read : "";
}

function given(answers) {
  if (!Array.isArray(answers)) return [isolated(inWords(answers))];
  return answers.flatMap((label, number) => (number ? [", ", isolated(label)] : [isolated(label)]));
}

/** The labels that are shown: the likeliest and those that are the answer, of a scale in its order. */
function entriesOf({ task, result, whole }) {
  if (task.kind === "regression") return [{ label: "value", score: null, given: true }];
  const answers = new Set([result.answer].flat());
  const marked = result.scores.map((entry) => ({ ...entry, given: answers.has(entry.label) }));
  const entries = marked.filter((entry, place) => whole || place < SHOWN || entry.given);
  if (task.kind !== "ordinal") return entries;
  const places = new Map(task.labels.map((label, place) => [label, place]));
  return entries.sort((one, other) => places.get(one.label) - places.get(other.label));
}

function rowOf(card, { label, score, given: chosen }) {
  const bar = element("span");
  bar.style.width = `${100 * Math.min(1, Math.max(0, score ?? 0))}%`;
  const track = element("span", { className: "track" }, ...(score === null ? [] : [bar]));
  if (score === null) track.style.visibility = "hidden";
  const shownName = score === null ? isolated("What raises it?") : joined(label); // a number has no labels
  const name = element("span", { className: "label" }, chosen && card.task.kind === "multi" ? "✓ " : "", shownName);
  const value = element("span", { className: "score" }, score === null ? "" : score.toFixed(4));
  const button = element("button", { type: "button", className: chosen ? "row given" : "row", title: label, tabIndex: -1 });
  button.append(name, " ", track, " ", value);
  // Not when it is entered: a pointer that lies still enters the new labels of every answer.
  button.addEventListener("pointermove", (event) => event.pointerType === "mouse" && soon(card, label));
  button.addEventListener("pointerleave", () => clearTimeout(hovering));
  button.addEventListener("focus", () => soon(card, label));
  button.addEventListener("click", () => {
    explain(card, label);
    button.scrollIntoView({ block: "nearest" });
  });
  return button;
}

/** One stop of the Tab key for each task; the arrows move between its labels. */
function walk(card, event) {
  const place = card.rows.findIndex((row) => row.button === event.target);
  const last = card.rows.length - 1;
  const next = { ArrowDown: Math.min(place + 1, last), ArrowUp: Math.max(place - 1, 0), Home: 0, End: last }[event.key];
  if (next === undefined || place < 0) return;
  event.preventDefault();
  card.rows.forEach((row, number) => (row.button.tabIndex = number === next ? 0 : -1));
  card.rows[next].button.focus();
}

/** The tasks that the filter leaves. */
function selected() {
  if (!byId("filter").value.trim()) return tasks;
  return cards.filter((card) => !card.article.hidden).map((card) => card.task);
}

function select() {
  const wanted = byId("filter").value.trim().toLowerCase();
  for (const card of cards) card.article.hidden = !card.task.name.toLowerCase().includes(wanted);
  const count = selected().length;
  byId("left-over").textContent = wanted ? `${count} of ${many(tasks.length, "task")}` : "";
  if (wanted) byId("live").textContent = byId("left-over").textContent;
  announceFile();
}

byId("filter").addEventListener("input", select);

// --- what speaks for a label -----------------------------------------------------------------------------------------

const explanations = new Map(); // promises of replies
let explained = new AbortController(); // of the texts that are shown
let hovering = 0;
let wanted = null; // the card and label whose explanation is shown or waited for

function soon(card, label) {
  clearTimeout(hovering);
  hovering = setTimeout(() => explain(card, label), HOVER);
}

/** Takes the explanation away. */
function forget() {
  clearTimeout(hovering);
  wanted = null;
  byId("why").hidden = true;
  document.body.classList.remove("explaining");
  press();
}

function press() {
  for (const card of cards)
    for (const row of card.rows ?? [])
      row.button.setAttribute("aria-pressed", String(wanted?.card === card && wanted.label === row.label));
}

async function explain(card, label) {
  clearTimeout(hovering);
  if (wanted?.card === card && wanted.label === label) return;
  const mine = (wanted = { card, label });
  press();
  byId("why-label").textContent = card.task.kind === "regression" ? "a higher value" : label;
  byId("why-task").textContent = card.task.name;
  byId("why-said").textContent = "…";
  byId("why").hidden = false;
  document.body.classList.add("explaining");
  const texts = card.task.pair ? shown : shown.slice(0, 1);
  byId("why-texts").replaceChildren(...texts.map((text) => marked(text, [])));
  try {
    const effects = effectsOn(await explanation(card.task, texts), card.task, label);
    if (wanted === mine) showEffects(texts, effects);
  } catch (error) {
    if (wanted === mine) {
      wanted = null; // so that it can be asked for again
      tell("why-said", error);
    }
  }
}

function explanation(task, texts) {
  const named = JSON.stringify([task.name, texts]);
  if (!explanations.has(named)) {
    const say = (text) => (byId("why-said").textContent = text || "…");
    const body = { task: task.name, input: task.pair ? texts : texts[0] };
    const promise = ask("explain", body, { signal: explained.signal, say });
    explanations.set(named, promise);
    promise.catch(() => explanations.delete(named));
    if (explanations.size > KEPT) explanations.delete(explanations.keys().next().value);
  }
  return explanations.get(named);
}

/** What each token does for a label, as {side, start, end, effect}, those that share characters as one.

    Of a softmax only differences between logits count, so there an effect is that beyond its mean over the labels. */
function effectsOn(reply, task, label) {
  const column = Math.max(0, reply.labels.indexOf(label));
  const relative = ["single", "ordinal"].includes(task.kind) && reply.labels.length > 1;
  const mean = (row) => (relative ? row.reduce((sum, value) => sum + value, 0) / row.length : 0);
  const weights = reply.effects.map((row) => row[column] - mean(row));
  const tokens = reply.tokens.map((token, place) => ({ ...token, effect: weights[place] }));
  const there = tokens.filter((token) => token.end > token.start);
  there.sort((one, other) => one.side - other.side || one.start - other.start);
  const joined = [];
  for (const token of there) {
    const last = joined.at(-1);
    if (last && last.side === token.side && token.start < last.end) {
      last.end = Math.max(last.end, token.end);
      last.effect += token.effect;
    } else joined.push(token);
  }
  return joined;
}

function showEffects(texts, effects) {
  const strongest = Math.max(...effects.map((token) => Math.abs(token.effect)), 0) || 1;
  const marks = effects.map((token) => ({ ...token, share: token.effect / strongest }));
  const strong = marks.filter((mark) => Math.abs(mark.share) >= FAINTEST);
  const drawn = texts.map((text, side) => marked(text, strong.filter((mark) => mark.side === side)));
  byId("why-texts").replaceChildren(...drawn);
  const words = strong.map((mark) => ({ ...mark, word: [...texts[mark.side]].slice(mark.start, mark.end).join("").trim() }));
  const said = `Strongest for it: ${quoted(words, 1)}. Strongest against it: ${quoted(words, -1)}.`;
  byId("why-said").textContent = said;
  byId("live").textContent = `${byId("why-label").textContent}. ${said}`;
}

/** A text with marks. Their places count code points, as the server does, where a string counts UTF-16 units. */
function marked(text, marks) {
  const characters = [...text];
  const made = element("p", { className: "text", dir: "auto" });
  let place = 0;
  for (const { start, end, effect, share } of marks) {
    const title = `${effect < 0 ? "−" : "+"}${Math.abs(effect).toFixed(2)}`;
    const mark = element("mark", { className: share < 0 ? "against" : "towards", title }, characters.slice(start, end).join(""));
    mark.style.setProperty("--share", Math.abs(share).toFixed(2));
    made.append(characters.slice(place, start).join(""), mark);
    place = end;
  }
  made.append(characters.slice(place).join(""));
  return made;
}

function quoted(words, sign) {
  const found = words.filter((mark) => mark.word && Math.sign(mark.share) === sign);
  found.sort((one, other) => Math.abs(other.share) - Math.abs(one.share));
  const first = [...new Set(found.map((mark) => mark.word))].slice(0, 3);
  return first.map((word) => `“\u2068${word}\u2069”`).join(", ") || "no word"; // isolated, like bdi
}

byId("close").addEventListener("click", forget);
document.addEventListener("keydown", (event) => event.key === "Escape" && forget());

// --- a file ----------------------------------------------------------------------------------------------------------

let table = null; // {name, header, rows, separator, mark}
let sending = null; // the AbortController of a file that is being sent
let link = ""; // of the file to download

/**
 * Rows of cells; lines counts those that a row begins on, from 1. Blank lines are none. Without quoting, quotes are
 * characters. With it, doubled says whether a cell has doubled quotes, and stray whether an unquoted cell has a quote.
 */
function parse(text, separator, quoting = true) {
  const rows = [];
  const lines = [];
  let [doubled, stray] = [false, false];
  let [row, cell, line, began, quotes, inside, opened] = [[], "", 1, 1, false, false, 1];
  const end = () => {
    row.push(cell);
    if (row.length > 1 || row[0] !== "" || quotes) {
      rows.push(row);
      lines.push(began);
    }
    [row, cell, quotes] = [[], "", false];
  };
  for (let place = 0; place < text.length; place++) {
    const character = text[place];
    const newline = character === "\n" || (character === "\r" && text[place + 1] !== "\n");
    if (newline) line += 1;
    if (inside) {
      if (character !== '"') cell += character;
      else if (text[place + 1] === '"') {
        cell += text[++place];
        doubled = true;
      } else {
        inside = false;
        // A lone quote has then taken lines into a cell that does not belong to it.
        if (![separator, "\n", "\r", undefined].includes(text[place + 1])) {
          const broken = `Text follows the quote that closes in line ${line} and opens in line ${opened}`;
          throw new Problem(`${broken}. Close each quoted cell, and write each quote in it twice.`);
        }
      }
    } else if (quoting && character === '"' && cell === "") [inside, quotes, opened] = [true, true, line];
    else if (character === separator) {
      row.push(cell);
      cell = "";
    } else if (newline) {
      end();
      began = line;
    } else if (character !== "\r") {
      cell += character;
      stray ||= character === '"';
    }
  }
  if (inside) throw new Problem(`The quote that opens in line ${opened} is not closed.`);
  if (row.length || cell || quotes) end();
  return { rows, lines, doubled, stray };
}

const fits = ({ rows }) => rows.every((row) => row.length === rows[0].length);

/** Rows of tab-separated cells, in which quotes are characters unless the file clearly quotes, as on the command line. */
function parseTabs(text) {
  if (/^[\r\n]*(?:[^\r\n]*\t)?"/.test(text)) return parse(text, "\t");
  const plain = parse(text, "\t", false);
  let quoted;
  try {
    quoted = parse(text, "\t");
  } catch {
    return plain;
  }
  return !quoted.stray && (quoted.doubled || (!fits(plain) && fits(quoted))) ? quoted : plain;
}

/** The separator that gives the first row the most cells. */
function separatorOf(text) {
  let [found, most, inside] = [",", 0, false];
  const counts = new Map([",", ";", "\t"].map((separator) => [separator, 0]));
  for (const character of text) {
    if (character === '"') inside = !inside;
    else if (!inside && (character === "\n" || character === "\r")) break;
    else if (!inside && counts.has(character)) counts.set(character, counts.get(character) + 1);
  }
  for (const [separator, count] of counts) if (count > most) [found, most] = [separator, count];
  return found;
}

async function read(file) {
  if (file.size > LARGEST) throw new Problem(`${file.name} is larger than ${LARGEST / 1e6} MB. Use the command line for it.`);
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Problem(`${file.name} is not text in UTF-8. Save it as "CSV UTF-8".`);
  }
  const mark = text.startsWith("\ufeff") ? "\ufeff" : "";
  text = text.slice(mark.length);
  const separator = separatorOf(text);
  const { rows, lines } = separator === "\t" ? parseTabs(text) : parse(text, separator);
  if (rows.length < 2) throw new Problem(`${file.name} has no rows below the names of its columns.`);
  const header = rows.shift();
  const wrong = rows.findIndex((row) => row.length !== header.length);
  if (wrong >= 0) {
    const counts = `Line ${lines[wrong + 1]} has ${many(rows[wrong].length, "cell")}, the first row has ${header.length}`;
    throw new Problem(`${counts}. Put cells that contain a separator in double quotes.`);
  }
  return { name: file.name, header, rows, separator, mark };
}

async function take(file) {
  sending?.abort();
  sending = table = null;
  for (const id of ["settings", "stop", "ready", "region", "bar"]) byId(id).hidden = true;
  for (const id of ["trouble", "far"]) byId(id).textContent = "";
  try {
    table = await read(file);
  } catch (error) {
    return tell("trouble", error);
  }
  const names = table.header.map((name, place) => name.trim() || `column ${place + 1}`);
  const options = (first) => [first, ...names.map((name, place) => new Option(name, String(place)))];
  byId("column").replaceChildren(...options(new Option("choose one", "")));
  byId("pair-column").replaceChildren(...options(new Option("none", "")));
  const find = (name) => names.findIndex((each) => each.toLowerCase() === name);
  const column = names.length === 1 ? 0 : find("text");
  byId("column").value = column < 0 ? "" : String(column);
  byId("pair-column").value = find("text_pair") < 0 ? "" : String(find("text_pair"));
  if (column < 0) byId("trouble").textContent = 'No column is called "text". Choose the column that has the texts.';
  byId("settings").hidden = false;
  announceFile();
}

/** Which tasks can be asked of the file, as it is set. */
const askable = () => (byId("pair-column").value ? selected() : selected().filter((task) => !task.pair));

function announceFile() {
  if (!table) return;
  const size = `${many(table.rows.length, "row")}, ${many(table.header.length, "column")}`;
  byId("found").replaceChildren(isolated(table.name), `: ${size}.`);
  const count = askable().length;
  const narrowed = byId("filter").value.trim() ? " that the filter leaves" : "";
  byId("start").textContent = `Classify with ${many(count, "task")}${narrowed}`;
  byId("start").disabled = sending !== null || !count || byId("column").value === "";
}

async function sendFile() {
  const { rows } = table;
  const [column, second] = [byId("column").value, byId("pair-column").value];
  const items = rows.map((row) => [row[Number(column)], second === "" ? "" : row[Number(second)]]);
  const chosen = askable();
  const answers = new Map(chosen.map((task) => [task.name, Array(rows.length).fill(null)]));
  const controller = (sending = new AbortController());
  const began = performance.now();
  const bar = byId("bar");
  const progress = (done, text) => {
    [bar.max, bar.value] = [rows.length, done];
    byId("far").textContent = text || `${done.toLocaleString("en")} of ${many(rows.length, "row")}`;
  };
  [byId("stop").hidden, bar.hidden, byId("ready").hidden, byId("region").hidden] = [false, false, true, true];
  byId("trouble").textContent = "";
  announceFile();
  let done = 0;
  try {
    while (done < rows.length) {
      progress(done);
      const say = (text) => progress(done, text);
      const part = await classify(items.slice(done, done + batch), chosen, { signal: controller.signal, say });
      for (const [name, found] of part.answers) answers.get(name)?.splice(done, found.length, ...found);
      done = Math.min(done + batch, rows.length);
    }
    const blank = items.filter((item) => !item[0].trim()).length;
    const left = blank ? ` ${many(blank, "row")} without a text ${blank === 1 ? "has" : "have"} no answers.` : "";
    progress(done, `${many(done, "row")} in ${((performance.now() - began) / 1000).toFixed(1)} s.${left}`);
    byId("live").textContent = byId("far").textContent;
  } catch (error) {
    if (sending === controller) {
      tell("trouble", controller.signal.aborted ? new Problem("Stopped.") : error);
      progress(done, done ? `Only the first ${many(done, "row")} have answers.` : "No row was classified.");
    }
  }
  if (sending !== controller) return;
  sending = null;
  [byId("stop").hidden, bar.hidden] = [true, true];
  announceFile();
  if (done) offer(items, answers, Math.min(done, ROWS));
}

function offer(items, answers, count) {
  const names = [...answers.keys()];
  const title = element("tr", {}, ...["text", ...names].map((name) => element("th", { scope: "col" }, isolated(name))));
  const cells = (place) => names.map((name) => inCell(answers.get(name)[place]));
  const texts = (place) => items[place].filter((text) => text).join(" / ");
  const lines = Array.from({ length: count }, (_, place) => [texts(place), ...cells(place)]);
  const body = lines.map((line) => element("tr", {}, ...line.map((text) => element("td", {}, isolated(text)))));
  const note = count < items.length ? `The first ${many(count, "row")}` : many(count, "row");
  const caption = element("caption", { className: "note" }, note);
  byId("table").replaceChildren(caption, element("thead", {}, title), element("tbody", {}, ...body));
  if (link) URL.revokeObjectURL(link);
  link = URL.createObjectURL(new Blob([written(answers)], { type: "text/csv" }));
  byId("download").href = link;
  const dot = table.name.lastIndexOf(".");
  byId("download").download = dot > 0 ? `${table.name.slice(0, dot)}-answers${table.name.slice(dot)}` : `${table.name}-answers.csv`;
  byId("ready").hidden = byId("region").hidden = false;
}

const inCell = (result) => (result === null ? "" : inWords(result.answer));

/** The file again, with a column for each task; several labels as a JSON list, which training reads. */
function written(answers) {
  const { header, rows, separator, mark } = table;
  const columns = [];
  for (const name of answers.keys()) {
    let free = harmless(name);
    while (header.includes(free) || columns.includes(free)) free += "_answer";
    columns.push(free);
  }
  const value = ({ answer: found } = { answer: null }) => {
    if (typeof found === "number") return String(found);
    return harmless(Array.isArray(found) ? JSON.stringify(found) : (found ?? ""));
  };
  const results = [...answers.values()];
  const longer = rows.map((row, place) => [...row, ...results.map((found) => value(found[place] ?? undefined))]);
  const whole = [[...header, ...columns], ...longer];
  const special = [separator, '"', "\n", "\r"];
  const quote = (cell) => (special.some((each) => cell.includes(each)) ? `"${cell.replaceAll('"', '""')}"` : cell);
  return mark + whole.map((row) => `${row.map(quote).join(separator)}\r\n`).join("");
}

/** Spreadsheets compute what begins like a formula; a label may be one. */
const harmless = (text) => (["=", "+", "-", "@", "\t", "\r"].includes(text[0]) ? `'${text}` : text);

byId("csv").addEventListener("change", () => byId("csv").files[0] && take(byId("csv").files[0]));
byId("column").addEventListener("change", () => {
  byId("trouble").textContent = "";
  announceFile();
});
byId("pair-column").addEventListener("change", announceFile);
byId("start").addEventListener("click", sendFile);
byId("stop").addEventListener("click", () => sending?.abort());

const brings = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!brings(event)) return;
  event.preventDefault(); // or the browser would go to the file
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  if (!brings(event)) return;
  event.preventDefault();
  byId("drop").classList.remove("over");
  if (tasks.length && event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});

begin();
