"use strict";

const root = document.documentElement;
const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));

// Colours: those of the system, until the reader chooses.
const theme = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
const nameTheme = () => { theme.textContent = isDark() ? "Light colours" : "Dark colours"; };
theme.hidden = false;
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
dark.addEventListener("change", nameTheme);
nameTheme();

// The legend: one sampler is highlighted in all figures and tables, the others are dimmed.
const chips = all(".legend button");
for (const chip of chips) {
  chip.addEventListener("click", () => {
    const on = chip.getAttribute("aria-pressed") !== "true";
    for (const other of chips) other.setAttribute("aria-pressed", String(on && other === chip));
    for (const item of all("main [data-sampler]")) {
      if (!item.closest(".legend")) item.classList.toggle("dimmed", on && item.dataset.sampler !== chip.dataset.sampler);
    }
  });
}

// Pictures: the samples, their differences from the reference, or the reference.
const show = document.getElementById("show");
if (show) {
  show.hidden = false;
  show.addEventListener("change", (event) => { document.getElementById("pictures").dataset.show = event.target.value; });
}

// The table: a heading sorts its rows; rows without a number come last.
const table = document.getElementById("table");
const headings = all("thead th", table);
headings.forEach((heading, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.append(heading.firstChild);
  heading.prepend(button);
  button.addEventListener("click", () => {
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of headings) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value;
    const compare = heading.dataset.sort === "number"
      ? (a, b) => sign * (Number(a) - Number(b))
      : (a, b) => sign * a.localeCompare(b);
    const body = table.tBodies[0];
    body.append(...Array.from(body.rows).sort((one, other) => {
      const [a, b] = [value(one), value(other)];
      return a === "" || b === "" ? Number(a === "") - Number(b === "") : compare(a, b);
    }));
  });
});

// The numbers as a file.
const save = document.getElementById("save");
save.hidden = false;
save.addEventListener("click", () => {
  const link = document.createElement("a");
  const text = JSON.stringify(JSON.parse(document.getElementById("comparison").textContent), null, 2);
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "compare.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
