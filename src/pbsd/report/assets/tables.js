"use strict";
// Elements and text. Foreign text becomes text nodes only, with its invisible characters written out.
const reportData = JSON.parse(document.getElementById("report-data").textContent);

const visible = (() => {
  const ranges = reportData.escaped.map((pair) => pair.map((code) => `\\u{${code.toString(16)}}`).join("-"));
  const hidden = new RegExp(`[${ranges.join("")}]`, "gu");
  const name = (found) => `⟨U+${found.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  return (text) => String(text).replace(hidden, name);
})();

/** An element with properties (`class`, `data-…` and `aria-…` as attributes) and children; strings become text. */
function element(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (key.includes("-") || key === "class" || key === "scope" || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** A table with caption and headers in a region of its own that scrolls sideways. */
function table({ caption, columns, rows }) {
  const cell = (text, tag, scope) => element(tag, scope ? { scope } : {}, element("bdi", {}, visible(text)));
  const head = element("tr", {}, ...columns.map((name) => cell(name, "th", "col")));
  const body = rows.map((row) =>
    element("tr", {}, ...row.map((text, place) => (place ? cell(text, "td") : cell(text, "th", "row")))));
  return element("div", { class: "scroll", role: "region", tabIndex: 0, "aria-label": visible(caption) },
    element("table", {}, element("caption", {}, visible(caption)),
      element("thead", {}, head), element("tbody", {}, ...body)));
}
