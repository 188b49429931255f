// The page of the server: texts and files of texts are sent to its API, answers and what speaks for them are shown.
// All that comes from outside (texts, labels, names, messages) goes into the page as text, never as HTML.

const DELAY = 300; // milliseconds without a key pressed until the text is sent
const HOVER = 150; // milliseconds that a label is pointed at or focused until it is explained
const SHOWN = 5; // labels of a task, unless all are asked for
const FILTERED = 6; // tasks from which on they can be filtered
const LINES = 13; // tasks from which on each is a line that unfolds, not a card
const UNFOLDED = 6; // lines that are about as high as what one unfolds
const GROUPED = 3; // tasks with the same beginning of their names, from which on they are a group
const FAINTEST = 0.05; // share of the strongest effect below which a token is not marked
const KEPT = 100; // explanations
const CHUNK = 200; // texts of a file in a request
const ANSWERS = 20_000; // answers in a request for a file, so that it stays far below the server's limit of time
const ROWS = 100; // of a file in the table
const CELLS = 6000; // in the table, of which a browser draws more only slowly
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

/** Change a text only where it differs: an answer changes few of hundreds. */
function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
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

    An item is a list of two texts, the second of which may be empty: then tasks on pairs are not asked. With `most`, an
    answer has scores of that number of labels. */
async function classify(items, chosen, options, most = null) {
  const found = { answers: new Map(), total: 0, encoder: 0, tokens: 0 };
  const forms = [chosen.filter((task) => !task.pair), chosen.filter((task) => task.pair)];
  await Promise.all(
    forms.map(async (form, paired) => {
      const places = [...items.keys()].filter((place) => items[place].slice(0, paired + 1).every((text) => text.trim()));
      if (!form.length || !places.length) return;
      const input = places.map((place) => (paired ? items[place] : items[place][0]));
      const names = chosen === tasks ? null : form.map((task) => task.name);
      const limit = most === null ? {} : { top_k: most };
      const reply = await ask("classify_many", { input, tasks: names, ...limit }, options);
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
let groups = []; // of cards, see groupsOf()
let compact = false; // whether each task is a line that unfolds
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
    build();
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
  byId("choice").hidden = tasks.length < FILTERED;
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
    card.probability = card.result && probabilityOf(card.result);
    fill(card);
  }
  byId("cards").classList.toggle("badged", cards.some((card) => card.badged));
  byId("scope-field").hidden = !cards.some((card) => card.result && "out_of_scope" in card.result);
  select();
  const share = found.total ? Math.round((100 * found.encoder) / found.total) : 0;
  const server = `${Math.round(1000 * found.total)} ms on the server (${share} % of that in the encoder)`;
  const times = `The answer took ${Math.round(milliseconds)} ms: ${server}. The encoder read ${many(found.tokens, "token")}.`;
  byId("latency").textContent = found.answers.size ? times : "";
  announce();
}

/** Tells a screen reader the answers of a few tasks, of many their number. */
function announce() {
  const answered = cards.filter((card) => card.result);
  const first = answered.filter((card) => card.shown).slice(0, SHOWN);
  const few = first.map((card) => `${card.task.name}: ${inWords(card.result.answer)}`).join("; ");
  const count = answered.length ? `${many(answered.length, "answer")}. ${leftOver() || "All are shown."}` : "";
  byId("live").textContent = compact ? count : few;
}

function inWords(given) {
  if (given === null) return "abstained";
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

/** Lay the tasks out anew: cards for a few, lines in groups for many. */
function build() {
  compact = tasks.length >= LINES;
  cards = tasks.map(cardOf);
  groups = compact ? groupsOf(cards) : [{ name: null, cards }];
  for (const card of cards) (compact ? addLine : addTitle)(card);
  for (const group of groups) addGroup(group);
  byId("cards").className = compact ? "list" : "";
  byId("cards").replaceChildren(...groups.flatMap((group) => (compact ? [group.section] : group.cards.map((card) => card.article))));
  byId("fold").hidden = groups.every((group) => group.name === null);
  const between = compact ? "tasks and between labels, and Enter unfolds a task" : "labels";
  byId("keys").textContent = `The up and down keys move between ${between}.`;
  if (compact) {
    byId("cards").setAttribute("role", "group");
    byId("cards").setAttribute("aria-label", "Tasks");
    byId("cards").setAttribute("aria-describedby", "hint");
  }
  stop = null;
  offerTasks();
}

/** Cards in groups by the beginnings of their names, in the order of the tasks; those without a group come last.

    A beginning ends before the first of / . - _ in what the names do not all begin with. */
function groupsOf(all) {
  const parts = all.map((card) => card.task.name.match(/[^/._-]*[/._-]+|[^/._-]+/g) ?? []);
  let depth = 0;
  while (parts.every((part) => part.length > depth + 1 && part[depth] === parts[0][depth])) depth += 1;
  const found = new Map();
  for (const [place, card] of all.entries()) {
    const beginning = parts[place].slice(0, depth + 1).join("");
    const name = beginning.replace(/[/._-]+$/, "");
    card.beginning = parts[place].length > depth + 1 ? beginning : "";
    found.set(name, [...(found.get(name) ?? []), card]);
  }
  const large = [...found].filter(([name, held]) => name && held.length >= GROUPED && held.length < all.length);
  const grouped = new Set(large.flatMap(([, held]) => held));
  const others = all.filter((card) => !grouped.has(card));
  for (const card of others) card.beginning = "";
  const made = large.map(([name, held]) => ({ name, cards: held }));
  return others.length ? [...made, { name: null, cards: others }] : made;
}

function addGroup(group) {
  group.folded = false;
  if (!compact) return;
  const list = element("div", { className: "lines" }, ...group.cards.map((card) => card.article));
  group.list = list;
  group.section = element("div", { className: "group" }, list);
  if (group.name === null && groups.length === 1) return;
  group.count = element("span", { className: "note" });
  const title = group.name === null ? "Other tasks" : isolated(group.name);
  group.button = element("button", { type: "button", className: "fold", tabIndex: -1 }, title, " ", group.count);
  group.button.addEventListener("click", () => fold(group, !group.folded));
  group.section.prepend(element("h3", {}, group.button));
}

function fold(group, folded) {
  group.folded = folded;
  select();
}

function cardOf(task, number) {
  const card = { task, number, result: null, probability: null, whole: false, open: !compact, rows: [], beginning: "" };
  card.words = [task.name, ...task.labels].join("\n").toLowerCase();
  card.answer = element("p", { className: "answer" });
  card.badges = element("p", { className: "badges", hidden: true });
  card.list = element("div", { className: "rows", role: "toolbar", ariaLabel: `Labels of ${task.name}` });
  card.list.ariaOrientation = "vertical";
  card.more = element("button", { className: "more", type: "button", hidden: true });
  card.note = element("p", { className: "note" });
  card.more.addEventListener("click", () => {
    card.whole = !card.whole;
    fill(card);
  });
  card.list.addEventListener("keydown", (event) => walk(card, event));
  card.article = element("article", { className: "task" });
  card.article.ariaLabel = task.name;
  return card;
}

function kindOf(task) {
  const labels = many(task.labels.length, "label");
  const kinds = { single: `one of ${labels}`, ordinal: `one on a scale of ${task.labels.length}`, multi: `any of ${labels}` };
  return `${kinds[task.kind] ?? "a number"}${task.pair ? ", of two texts" : ""}`;
}

function addTitle(card) {
  const title = element("h3", {}, isolated(card.task.name));
  const kind = element("p", { className: "note" }, kindOf(card.task));
  card.article.append(title, kind, card.answer, card.badges, card.list, card.more, card.note);
  fill(card);
}

/** A line says what a card says, and unfolds its labels. What the name shares with its group is only read out. */
function addLine(card) {
  const { task, number, beginning } = card;
  const shared = beginning ? [element("span", { className: "unseen" }, beginning)] : [];
  const name = element("span", { className: "name" }, isolated(...shared, joined(task.name.slice(beginning.length))));
  card.answer = element("span", { className: "given" });
  card.badges = element("span", { className: "badges", hidden: true });
  card.bar = element("span");
  card.score = element("span", { className: "score" });
  const track = element("span", { className: "track" }, card.bar);
  const line = element("button", { type: "button", className: "line", tabIndex: -1, title: task.name });
  const said = element("span", { className: "said" }, card.answer, " ", card.badges);
  line.append(name, " ", said, " ", track, " ", card.score);
  const kind = element("p", { className: "note" }, isolated(task.name), `: ${kindOf(task)}`);
  card.details = element("div", { className: "details", id: `details-${number}`, hidden: true }, kind, card.list, card.more, card.note);
  line.setAttribute("aria-controls", card.details.id);
  line.addEventListener("click", () => {
    card.open = !card.open;
    stopAt(line);
    fill(card);
    showGroup(groups.find((group) => group.cards.includes(card)));
  });
  card.line = line;
  card.article.append(line, card.details);
  fill(card);
}

/** Shows a task's result. Elements are changed, not made anew, as this happens for each task while a text is typed. */
function fill(card) {
  const { task, result } = card;
  const empty = result && (result.answer === null || result.answer.length === 0);
  const missing = task.pair && byId("first").value.trim() ? (compact ? "needs a second text" : "This task needs a second text.") : "–";
  const said = result ? (empty ? unanswered(task) : JSON.stringify(result.answer)) : missing;
  if (card.said !== said) {
    card.answer.replaceChildren(...(result && !empty ? given(result.answer) : [said]));
    card.answer.classList.toggle("none", !result || empty);
    card.said = said;
  }
  fillBadges(card);
  if (compact) {
    card.line.setAttribute("aria-expanded", String(card.open));
    card.details.hidden = !card.open;
    write(card.score, card.probability === null ? "" : card.probability.toFixed(4));
    card.bar.parentNode.style.visibility = card.probability === null ? "hidden" : "";
    card.bar.style.width = `${100 * (card.probability ?? 0)}%`;
    if (!card.open && !card.rows.length) return;
  }
  fillRows(card);
  card.more.hidden = !result || task.labels.length <= SHOWN;
  write(card.more, card.whole ? "Fewer labels" : `All ${task.labels.length} labels`);
  card.more.setAttribute("aria-expanded", String(card.whole));
  const read = `The text is too long. The task reads only its first ${many(task.max_input_length, "token")}.`;
  write(card.note, result?.truncated ? read : "");
}

function unanswered(task) {
  if (compact) return task.kind === "multi" ? "no label" : "abstained";
  return task.kind === "multi" ? "No label is above its threshold." : "No answer, because the confidence is too low.";
}

/** What a result says beside its answer, in words. A server that does not say it leaves the fields out. */
function badgesOf(result) {
  const badges = [];
  if (result?.out_of_scope === true) badges.push(["out of scope", "badge outside"]);
  if (typeof result?.head === "string") badges.push([`${result.head} head`, "badge"]);
  return badges;
}

function fillBadges(card) {
  const badges = badgesOf(card.result);
  const said = badges.map(([text]) => text).join(", ");
  if (card.badged === said) return;
  card.badged = said;
  card.badges.replaceChildren(...badges.flatMap(([text, className]) => [element("span", { className }, text), " "]));
  card.badges.hidden = !badges.length;
}

/** The probability of an answer, of several labels the highest; null of a number, and where there is no answer. */
function probabilityOf({ answer: found, scores }) {
  const labels = new Set([found].flat());
  const values = scores.filter((entry) => labels.has(entry.label)).map((entry) => entry.score);
  return values.length ? Math.max(...values) : null;
}

function fillRows(card) {
  const entries = card.open && card.result ? entriesOf(card) : [];
  const known = new Map(card.rows.map((row) => [row.label, row]));
  const rows = entries.map((entry) => known.get(entry.label) ?? rowOf(card, entry));
  rows.forEach((row, place) => fillRow(card, row, entries[place]));
  const same = rows.length === card.rows.length && rows.every((row, place) => row === card.rows[place]);
  if (!same) {
    const focused = card.rows.find((row) => row.button === document.activeElement)?.label;
    card.rows = rows;
    card.list.replaceChildren(...rows.map((row) => row.button));
    const place = Math.max(0, rows.findIndex((row) => row.label === focused));
    rows.forEach((row, number) => (row.button.tabIndex = number === place ? 0 : -1));
    if (focused !== undefined) rows[place]?.button.focus({ preventScroll: true });
    press();
  }
  card.list.hidden = !entries.length;
  card.list.classList.toggle("many", card.whole);
}

function given(answers) {
  if (!Array.isArray(answers)) return [joined(inWords(answers))];
  return answers.flatMap((label, number) => (number ? [", ", joined(label)] : [joined(label)]));
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

function rowOf(card, { label, score }) {
  const bar = element("span");
  const track = element("span", { className: "track" }, ...(score === null ? [] : [bar]));
  if (score === null) track.style.visibility = "hidden";
  const shownName = score === null ? isolated("What raises it?") : joined(label); // a number has no labels
  const tick = element("span");
  const name = element("span", { className: "label" }, tick, shownName);
  const value = element("span", { className: "score" });
  const button = element("button", { type: "button", className: "row", title: label, tabIndex: -1 });
  button.append(name, " ", track, " ", value);
  // Not when it is entered: a pointer that lies still enters the new labels of every answer.
  button.addEventListener("pointermove", (event) => event.pointerType === "mouse" && soon(card, label));
  button.addEventListener("pointerleave", () => clearTimeout(hovering));
  button.addEventListener("focus", () => soon(card, label));
  button.addEventListener("click", () => {
    explain(card, label);
    button.scrollIntoView({ block: "nearest" });
  });
  return { label, button, bar, tick, value };
}

function fillRow(card, { button, bar, tick, value }, { score, given: chosen }) {
  bar.style.width = `${100 * Math.min(1, Math.max(0, score ?? 0))}%`;
  button.classList.toggle("given", chosen);
  write(tick, chosen && card.task.kind === "multi" ? "✓ " : "");
  write(value, score === null ? "" : score.toFixed(4));
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

// --- which tasks are shown, and the keys ------------------------------------------------------------------------------

let stop = null; // the line or title of a group that the Tab key reaches; arrows move it

/** The tasks that the search leaves. */
const selected = () => cards.filter((card) => card.found).map((card) => card.task);

/** Shows the tasks that the search and the answers leave. Called for each key of the search and each answer. */
function select() {
  const focused = document.activeElement;
  const least = Number(byId("least").value);
  const inside = byId("scope").checked && !byId("scope-field").hidden;
  const answered = cards.some((card) => card.result);
  for (const card of cards) {
    card.found = isFound(card);
    card.unlikely = card.found && answered && least > 0 && isUnlikely(card, least);
    card.outside = card.found && !card.unlikely && inside && card.result?.out_of_scope === true;
    card.shown = card.found && !card.unlikely && !card.outside;
    card.article.hidden = !card.shown;
  }
  if (compact) for (const group of groups) showGroup(group);
  write(byId("least-said"), least ? least.toFixed(2) : "any");
  byId("least").setAttribute("aria-valuetext", least ? least.toFixed(2) : "any");
  write(byId("left-over"), leftOver());
  byId("nothing").hidden = !tasks.length || cards.some((card) => card.shown);
  write(byId("fold"), isFolded() ? "Unfold all groups" : "Fold all groups");
  settle(focused);
  announceFile();
}

function isFound(card) {
  const wanted = byId("search").value.trim().toLowerCase();
  if (!wanted) return true;
  const place = byId("searched").value;
  if (place === "words") return card.words.includes(wanted);
  if (place === "names") return card.task.name.toLowerCase().includes(wanted);
  return card.result !== null && [card.result.answer].flat().some((label) => inWords(label).toLowerCase().includes(wanted));
}

/** A number has no probability, so it is never too unlikely. */
function isUnlikely({ task, result, probability }, least) {
  return !(result && task.kind === "regression") && (probability === null || probability < least);
}

/** How many tasks are shown and why the others are not; empty if all are. */
function leftOver() {
  const count = (name) => cards.filter((card) => card[name]).length;
  const [shownTasks, unlikely, outside] = [count("shown"), count("unlikely"), count("outside")];
  if (shownTasks === tasks.length) return "";
  const reasons = [];
  if (unlikely) reasons.push(`${unlikely} below the least probability`);
  if (outside) reasons.push(`${outside} out of scope`);
  return `${shownTasks} of ${many(tasks.length, "task")}${reasons.length ? `; hidden: ${reasons.join(", ")}` : ""}`;
}

function showGroup(group) {
  const count = group.cards.filter((card) => card.shown).length;
  group.section.hidden = !count;
  // Its height while it is not on the screen, so that the page does not jump when it is scrolled.
  const open = group.cards.filter((card) => card.shown && card.open).length;
  group.section.style.setProperty("--lines", group.folded ? 0 : count + UNFOLDED * open);
  if (!group.button) return;
  group.list.hidden = group.folded;
  group.button.setAttribute("aria-expanded", String(!group.folded));
  const all = many(group.cards.length, "task");
  write(group.count, count < group.cards.length ? `${count} of ${all}` : all);
}

const titled = () => groups.filter((group) => group.button);
const isFolded = () => titled().length > 0 && titled().every((group) => group.folded);

/** The lines and titles of groups that are shown, in order. */
function stops() {
  const open = (group) => (group.folded ? [] : group.cards.filter((card) => card.shown).map((card) => card.line));
  const there = compact ? groups.filter((group) => !group.section.hidden) : [];
  return there.flatMap((group) => [...(group.button ? [group.button] : []), ...open(group)]);
}

function stopAt(next) {
  if (stop) stop.tabIndex = -1;
  stop = next;
  if (stop) stop.tabIndex = 0;
}

/** Keeps one line or title in the reach of the Tab key, and the focus out of what has been hidden. */
function settle(focused) {
  const all = stops();
  if (compact && !all.includes(stop)) {
    const follows = (other) => stop.compareDocumentPosition(other) & Node.DOCUMENT_POSITION_FOLLOWING;
    stopAt((stop && all.find(follows)) ?? all.at(stop ? -1 : 0) ?? null);
  }
  if (!byId("cards").contains(focused) || !focused.closest("[hidden]")) return;
  (stop ?? byId("tasks")).focus();
}

/** One stop of the Tab key for all tasks; the arrows move between them, fold and unfold. */
function walkTasks(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const all = stops();
  const place = all.indexOf(event.target);
  if (place < 0) return;
  const [isOpen, last] = [event.target.getAttribute("aria-expanded") === "true", all.length - 1];
  const title = groups.find((group) => group.button && group.cards.some((card) => card.line === event.target))?.button;
  const moves = { ArrowDown: all[Math.min(place + 1, last)], ArrowUp: all[Math.max(place - 1, 0)], Home: all[0], End: all[last] };
  if (event.key === "ArrowLeft" && !isOpen && title) moves.ArrowLeft = title;
  const turned = event.key === (isOpen ? "ArrowLeft" : "ArrowRight");
  if (!moves[event.key] && !turned) return;
  event.preventDefault();
  if (turned) return event.target.click();
  stopAt(moves[event.key]);
  stop.focus();
}

byId("cards").addEventListener("keydown", walkTasks);
byId("cards").addEventListener("focusin", (event) => event.target.matches(".line, .fold") && stopAt(event.target));
byId("search").addEventListener("input", () => {
  // What is found should be seen.
  if (byId("search").value.trim()) for (const group of groups) group.folded = false;
});
for (const [id, kind] of [["search", "input"], ["searched", "change"], ["least", "input"], ["scope", "change"]])
  byId(id).addEventListener(kind, () => {
    select();
    byId("live").textContent = leftOver() || `All ${many(tasks.length, "task")}`;
  });
byId("fold").addEventListener("click", () => {
  const folded = !isFolded();
  for (const group of titled()) group.folded = folded;
  select();
});

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

let ticked = null; // names of the tasks that become columns; null: those that the search leaves

const columns = () => (ticked === null ? selected() : tasks.filter((task) => ticked.has(task.name)));

/** Which tasks can be asked of the file, as it is set. */
const askable = () => columns().filter((task) => byId("pair-column").value || !task.pair);

/** A box for each task. They are one stop of the Tab key, like the lines. */
function offerTasks() {
  ticked = null;
  const boxOf = (task, number) => element("input", { type: "checkbox", tabIndex: number ? -1 : 0, value: task.name });
  const boxes = tasks.map(boxOf);
  const labelOf = (box) => element("label", { className: "check" }, box, " ", joined(box.value));
  byId("choices").replaceChildren(...boxes.map(labelOf));
}

const boxes = () => [...byId("choices").querySelectorAll("input")];

function tickBoxes() {
  const chosen = new Set(columns().map((task) => task.name));
  const paired = byId("pair-column").value !== "";
  boxes().forEach((box, place) => {
    box.disabled = !paired && Boolean(tasks[place].pair);
    box.checked = chosen.has(box.value) && !box.disabled;
  });
  write(byId("choice-said"), `Columns: ${askable().length} of ${many(tasks.length, "task")}`);
}

function tick(names) {
  ticked = names;
  announceFile();
}

byId("choices").addEventListener("change", () => tick(new Set(boxes().filter((box) => box.checked).map((box) => box.value))));
byId("choices").addEventListener("keydown", (event) => {
  const all = boxes();
  const place = all.indexOf(event.target);
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, Home: -all.length, End: all.length }[event.key];
  if (step === undefined || place < 0) return;
  event.preventDefault();
  const next = all[Math.min(all.length - 1, Math.max(0, place + step))];
  for (const box of all) box.tabIndex = box === next ? 0 : -1;
  next.focus();
});
byId("choice-all").addEventListener("click", () => tick(new Set(tasks.map((task) => task.name))));
byId("choice-none").addEventListener("click", () => tick(new Set()));
byId("choice-search").addEventListener("click", () => tick(null));

function announceFile() {
  if (!table) return;
  const size = `${many(table.rows.length, "row")}, ${many(table.header.length, "column")}`;
  byId("found").replaceChildren(isolated(table.name), `: ${size}.`);
  tickBoxes();
  const count = askable().length;
  const searching = ticked === null && byId("search").value.trim();
  const narrowed = ticked ? " that are ticked" : searching ? " that the search leaves" : "";
  byId("start").textContent = `Classify with ${many(count, "task")}${narrowed}`;
  byId("start").disabled = sending !== null || !count || byId("column").value === "";
}

async function sendFile() {
  const { rows } = table;
  const [column, second] = [byId("column").value, byId("pair-column").value];
  const items = rows.map((row) => [row[Number(column)], second === "" ? "" : row[Number(second)]]);
  const chosen = askable();
  const size = Math.max(1, Math.min(batch, Math.floor(ANSWERS / chosen.length)));
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
      const part = await classify(items.slice(done, done + size), chosen, { signal: controller.signal, say }, 1);
      for (const [name, found] of part.answers) answers.get(name)?.splice(done, found.length, ...found);
      done = Math.min(done + size, rows.length);
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
  const fitting = Math.max(1, Math.floor(CELLS / chosen.length));
  if (done) offer(items, answers, Math.min(done, ROWS, fitting));
}

function offer(items, answers, count) {
  const names = [...answers.keys()];
  const title = element("tr", {}, ...["text", ...names].map((name) => element("th", { scope: "col" }, joined(name))));
  const cells = (place) => names.map((name) => inCell(answers.get(name)[place]));
  const texts = (place) => items[place].filter((text) => text).join(" / ");
  const cellsOf = (place) => [isolated(texts(place)), ...cells(place).map(joined)].map((cell) => element("td", {}, cell));
  const body = Array.from({ length: count }, (_, place) => element("tr", {}, ...cellsOf(place)));
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
