"use strict";
// Light, dark, or as the system has it. Colours are custom properties of the style sheet.
const theme = (() => {
  const root = document.documentElement;
  const picker = document.getElementById("theme");
  const probe = document.getElementById("probe");
  const listeners = [];

  function stored(value) {
    try { // some browsers refuse storage to files
      if (value === undefined) return localStorage.getItem("pbsd-theme") ?? "";
      localStorage.setItem("pbsd-theme", value);
    } catch { /* the choice then lasts as long as the page */ }
    return "";
  }

  function apply(name) {
    if (name) root.dataset.theme = name; else delete root.dataset.theme;
    listeners.forEach((listener) => listener());
  }

  picker.value = ["light", "dark"].includes(stored()) ? stored() : "";
  apply(picker.value);
  picker.addEventListener("change", () => { stored(picker.value); apply(picker.value); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => apply(picker.value));

  return {
    /** A custom property as rgb(r, g, b), in the theme that is on. */
    color(name) {
      probe.style.color = `var(--${name})`;
      return getComputedStyle(probe).color;
    },
    onChange(listener) { listeners.push(listener); },
  };
})();
