"use strict";

// Without this script, all tables are complete and in their initial order, and no inactive control is visible.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];

  const sort = (head, column) => {
    const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    const sign = direction === "ascending" ? 1 : -1;
    const numeric = head.classList.contains("n");
    const key = (row) => {
      const text = row.cells[column].textContent.trim();
      return numeric ? parseFloat(text.replaceAll(",", "")) : text;
    };
    const compare = numeric ? (a, b) => a - b : new Intl.Collator("en", { numeric: true }).compare;
    const rows = [...body.rows].map((row) => [key(row), row]);
    rows.sort(([a], [b]) => sign * compare(a, b));
    body.append(...rows.map(([, row]) => row));
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction);
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(head, column));
    head.append(button);
  });
}

const search = document.getElementById("class-search");
const rows = [...document.getElementById("class-table").tBodies[0].rows];
const texts = rows.map((row) =>
  [0, 1, 2].map((column) => row.cells[column].textContent.toLowerCase()).join(" ")
);
search.closest(".search").hidden = false;
search.addEventListener("input", () => {
  const words = search.value.toLowerCase().split(/\s+/);
  let found = 0;
  rows.forEach((row, i) => {
    row.hidden = !words.every((word) => texts[i].includes(word));
    found += !row.hidden;
  });
  const all = rows.length.toLocaleString("en");
  document.getElementById("class-count").textContent =
    search.value.trim() ? `${found.toLocaleString("en")} of ${all}` : "";
});
