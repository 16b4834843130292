"use strict";
const cellValue = cell => cell.dataset.v ?? cell.textContent;

// Sorting: a heading sorts by its column, missing values last; a second click reverses the order.
for (const heading of document.querySelectorAll("th button")) {
  heading.addEventListener("click", () => {
    const th = heading.closest("th");
    const body = th.closest("table").tBodies[0];
    const column = [...th.parentNode.children].indexOf(th);
    const direction = th.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of th.parentNode.children) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", direction);
    const value = row => cellValue(row.cells[column]);
    const rows = [...body.rows];
    const numeric = rows.every(row => value(row) === "" || !Number.isNaN(Number(value(row))));
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
      return direction === "ascending" ? order : -order;
    };
    body.append(...rows.sort((a, b) => compare(value(a), value(b))));
  });
}

// Filtering: rows of both tables, by what they are in words, and the marks of the charts.
const words = document.getElementById("filter");
const selects = [...document.querySelectorAll("select[data-key]")];
const rows = [...document.querySelectorAll("tr[data-c]")];
const configurations = rows.filter(row => row.closest("#configurations"));
function filter() {
  const chosen = selects.filter(select => select.value).map(select => ` ${select.dataset.key}=${select.value} `);
  const wanted = [...chosen, ...words.value.split(/\s+/)].map(word => word.toLowerCase());
  const fits = row => wanted.every(word => row.dataset.words.includes(word));
  const left = new Set();
  for (const row of rows) {
    const shown = fits(row);
    row.classList.toggle("off", !shown);
    if (shown) left.add(row.dataset.c);
  }
  for (const drawn of document.querySelectorAll(".m[data-c], .legend [data-c]")) {
    drawn.classList.toggle("off", !left.has(drawn.dataset.c));
  }
  const count = configurations.filter(row => !row.classList.contains("off")).length;
  document.getElementById("shown").textContent = `${count} of ${configurations.length} shown`;
}
words.addEventListener("input", filter);
for (const select of selects) select.addEventListener("change", filter);
filter();

// Hovering highlights a configuration everywhere.
for (const [event, near] of [["pointerover", true], ["pointerout", false]]) {
  document.addEventListener(event, ({ target }) => {
    const place = target.closest("[data-c]");
    if (!place) return;
    for (const charts of document.querySelectorAll(".charts")) charts.classList.toggle("near", near);
    for (const same of document.querySelectorAll(`[data-c="${place.dataset.c}"]`)) same.classList.toggle("near", near);
  });
}
