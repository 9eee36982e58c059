"use strict";
// The pair explorer: a page of ten at a time, whatever the number of pairs.
(() => {
  const form = document.getElementById("explorer-form");
  if (!form) return;
  const PAGE = 10;
  const CUT = 2000; // characters of a text, and
  const CUT_TOKENS = 400; // coloured tokens, that are shown before a button asks for the rest
  const CUT_CELL = 100; // characters of a token in the table
  const at = (id) => document.getElementById(`explorer-${id}`);
  const [run, search, order, list, status, page] = ["run", "search", "order", "list", "status", "page"].map(at);
  const flags = [...form.querySelectorAll("[name=flag]")];
  const moves = [...document.querySelectorAll("[data-move]")];
  const loaded = new Map();
  let data, found = [], shown = 0, waiting;

  const number = new Intl.NumberFormat("en", { maximumFractionDigits: 3 });
  const figure = (value) => (value === null || value === undefined ? "–" : number.format(value).replace("-", "−"));
  const count = (n, noun) => `${number.format(n)} ${n === 1 ? noun.replace(/s$/, "") : noun}`;

  function load(index) {
    if (!loaded.has(index)) {
      const [first, ...lines] = document.getElementById(`pairs-${index}`).textContent.split("\n");
      const block = JSON.parse(first);
      loaded.set(index, { ...block, haystacks: null,
        texts: lines.slice(0, block.texts), records: lines.slice(block.texts) }); // JSON, parsed when it is shown
    }
    data = loaded.get(index);
    for (const flag of flags) {
      const n = data.flags.filter((raised) => raised.includes(flag.value)).length;
      form.querySelector(`[data-count=${flag.value}]`).textContent = number.format(n);
    }
    at("share").textContent = data.records.length < data.total
      ? `The page holds ${number.format(data.records.length)} of the run's ${count(data.total, data.noun)}, evenly spaced `
        + `over training; filters, counts and search see only these. ${data.more} takes more.` : "";
    at("tokens").replaceChildren(...(data.has_token_ratios ? legend()
      : ["This run's samples carry no log-ratio by token, so texts are not coloured."]));
  }

  function legend() {
    const sample = (level, text) => element("span", { class: `token ${level}` }, text);
    return ["Token colour, log π − log T: ", sample("plus-4", "the student finds it likelier"), " ",
      sample("minus-4", "the teacher finds it likelier"), "; the deeper, the larger (0.1, 0.5, 1, 2 nats)."];
  }

  // What is shown

  function haystacks() {
    const texts = data.texts.map((line) => JSON.parse(line).map(([, text]) => text).join("\n"));
    return data.records.map((line) => {
      const record = JSON.parse(line);
      const places = [record.prompt, record.context, record.teacher_prompt].filter((place) => place !== null);
      return [...places.map((place) => texts[place]), ...record.sides.map((side) => side.text)].join("\n").toLowerCase();
    });
  }

  function select() {
    clearTimeout(waiting);
    const wanted = flags.filter((flag) => flag.checked).map((flag) => flag.value);
    const query = search.value.trim().toLowerCase();
    if (query) data.haystacks ??= haystacks();
    found = [...data.records.keys()].filter((place) =>
      wanted.every((flag) => data.flags[place].includes(flag)) && (!query || data.haystacks[place].includes(query)));
    const keys = { longest: (place) => -(data.longest[place] ?? 0), margin: (place) => data.margins[place] ?? Infinity,
      "margin-down": (place) => -(data.margins[place] ?? -Infinity) };
    const key = keys[order.value];
    if (key) found.sort((one, other) => key(one) - key(other) || one - other);
    show(0);
  }

  function show(wanted) {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    shown = Math.min(Math.max(0, wanted), pages - 1);
    const first = shown * PAGE, here = found.slice(first, first + PAGE);
    list.replaceChildren(...here.map(card));
    status.textContent = found.length === 0 ? `No ${data.noun} match; loosen the filters or the search.`
      : `${count(found.length, data.noun)} of ${number.format(data.records.length)}, showing ${number.format(first + 1)}–`
        + `${number.format(first + here.length)}.`;
    page.value = shown + 1;
    page.max = pages;
    at("pages").textContent = `of ${number.format(pages)}`;
    for (const move of moves) {
      const end = shown + Number(move.dataset.move);
      move.setAttribute("aria-disabled", String(end < 0 || end >= pages)); // not `disabled`, which would lose the focus
    }
  }

  // A pair

  function card(place) {
    const record = JSON.parse(data.records[place]), id = `pair-${place}`;
    const chips = record.flags.map((flag) => element("li", { class: `chip ${flag}` },
      form.querySelector(`[value=${flag}]`).parentElement.firstChild.nextSibling.textContent.trim()));
    const figures = ["margin", "label", "advantage", "loss"].filter((key) => key in record)
      .map((key) => element("div", {}, element("dt", {}, key), element("dd", {}, figure(record[key]))));
    return element("article", { class: "pair", "aria-labelledby": id },
      element("div", { class: "bar" },
        element("h3", { id }, `${record.sides.length === 2 ? "Pair" : "Sample"} ${number.format(place + 1)}`,
          element("small", {}, ` step ${figure(record.step)}, row ${record.row === null ? "–" : visible(record.row)}`)),
        element("ul", { class: "chips", "aria-label": "Flags" }, ...chips)),
      element("dl", { class: "figures" }, ...figures),
      element("div", { class: "two" },
        block("Prompt", record.prompt), block("Context, seen by the teacher only", record.context)),
      record.teacher_prompt === null ? null : block("The teacher's own prompt", record.teacher_prompt),
      element("div", { class: "two" }, ...record.sides.map(side)));
  }

  function block(title, place) {
    const parts = place === null ? [element("p", { class: "caption" }, "none")]
      : JSON.parse(data.texts[place]).flatMap(([role, text]) =>
        [role === null ? null : element("p", { class: "role" }, visible(role)), ...passage(text)]);
    return element("div", { class: "block" }, element("h4", {}, title), ...parts);
  }

  function side(given) {
    const titles = { chosen: "Chosen y⁺", rejected: "Rejected y⁻", sample: "Completion" };
    const facts = [given.role && `by ${visible(given.role)}`, `reward ${figure(given.reward)}`,
      "log_ratio" in given && `log-ratio ${figure(given.log_ratio)}`, count(given.tokens ?? 0, "tokens"),
      given.finished === false && "cut at the length limit"].filter(Boolean);
    return element("div", { class: `block ${given.name}` }, element("h4", {}, titles[given.name]),
      element("p", { class: "facts" }, facts.join(" · ")),
      ...(given.ratios === undefined ? passage(given.text) : tokens(unpacked(given))));
  }

  /** The first `size` characters of a text, or one less where that would halve a surrogate pair. */
  function head(text, size) {
    if (text.length <= size) return text;
    return text.slice(0, /[\ud800-\udbff]/.test(text[size - 1]) ? size - 1 : size);
  }

  /** A text; a long one is cut, with a button for the rest. */
  function passage(text) {
    const pre = element("pre", { dir: "auto" });
    return opening(pre, text.length > CUT, count(text.length, "characters"),
      (whole) => pre.replaceChildren(visible(whole ? text : head(text, CUT))));
  }

  /** A side's tokens and their log-ratios, from their lengths and from thousandths (none: not known). */
  function unpacked({ text, lengths, rest, ratios }) {
    const sizes = lengths.split(",").map(Number);
    const total = sizes.reduce((sum, size) => sum + size, 0);
    const whole = text.slice(0, total - rest.length) + rest;
    let end = 0;
    return { pieces: sizes.map((size) => whole.slice(end, end += size)),
      ratios: ratios.split(",").map((thousandths) => (thousandths === "" ? null : Number(thousandths) / 1000)) };
  }

  /** The first tokens, as many as are shown at once; one of them may be a long text. */
  function firstPieces(pieces) {
    const kept = [];
    let room = CUT;
    for (const piece of pieces.slice(0, CUT_TOKENS)) {
      if (room <= 0) break;
      kept.push(head(piece, room));
      room -= piece.length;
    }
    return kept;
  }

  function tokens({ pieces, ratios }) {
    const pre = element("pre", { dir: "auto" });
    const span = (text, place) =>
      element("span", { class: `token ${level(ratios[place])}`, title: `log-ratio ${figure(ratios[place])}` }, visible(text));
    const cell = (text) => JSON.stringify(head(text, CUT_CELL)) + (text.length > CUT_CELL ? "…" : "");
    const rows = () => pieces.map((text, place) => [String(place + 1), cell(text), figure(ratios[place])]);
    const characters = pieces.reduce((sum, text) => sum + text.length, 0);
    const numbers = element("details", {}, element("summary", {}, "Tokens as a table"));
    numbers.addEventListener("toggle", () => numbers.append(
      table({ caption: "Log-ratio by token", columns: ["place", "token", "log-ratio"], rows: rows() })), { once: true });
    return [...opening(pre, pieces.length > CUT_TOKENS || characters > CUT,
      `${count(pieces.length, "tokens")}, ${count(characters, "characters")}`,
      (whole) => pre.replaceChildren(...(whole ? pieces : firstPieces(pieces)).map(span))), numbers];
  }

  function level(ratio) {
    const depth = [0.1, 0.5, 1, 2].filter((bound) => Math.abs(ratio ?? 0) > bound).length;
    return depth ? `${ratio > 0 ? "plus" : "minus"}-${depth}` : "even";
  }

  function opening(pre, long, size, fill) {
    fill(false);
    if (!long) return [pre];
    pre.classList.add("cut");
    const button = element("button", { type: "button", "aria-expanded": "false" }, `Show all ${size}`);
    button.addEventListener("click", () => {
      const whole = button.getAttribute("aria-expanded") === "false";
      fill(whole);
      pre.classList.toggle("cut", !whole);
      pre.classList.toggle("whole", whole);
      if (whole) pre.tabIndex = 0; else pre.removeAttribute("tabindex"); // it scrolls
      button.setAttribute("aria-expanded", String(whole));
      button.textContent = whole ? "Show less" : `Show all ${size}`;
    });
    return [pre, button];
  }

  // Controls

  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(select, 150); });
  form.addEventListener("submit", (event) => { event.preventDefault(); select(); });
  form.addEventListener("change", (event) => {
    if (event.target === search) return;
    if (event.target === run) load(Number(run.value));
    select();
  });
  page.addEventListener("change", () => show(Number(page.value) - 1));
  for (const move of moves) {
    move.addEventListener("click", () => {
      if (move.getAttribute("aria-disabled") === "true") return;
      show(shown + Number(move.dataset.move));
      if ("below" in move.dataset) list.focus();
    });
  }
  load(0);
  select();
})();
