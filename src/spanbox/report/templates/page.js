"use strict";

// Sortable tables: a button in each heading, aria-sort on the active one.
function makeSortable(table) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(table, headings, column));
    heading.append(button);
  });
}

function sortBy(table, headings, column) {
  const heading = headings[column];
  const isText = heading.dataset.sort === "text";
  const before = heading.getAttribute("aria-sort");
  // The first click sorts numbers from the largest, words from A.
  const order = before === null ? (isText ? "ascending" : "descending") : before === "ascending" ? "descending" : "ascending";
  headings.forEach((other) => other.removeAttribute("aria-sort"));
  heading.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => {
    const value = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    return isText ? value : value === "" ? NaN : Number(value);
  };
  const compare = (a, b) => {
    if (isText) return sign * a.localeCompare(b, document.documentElement.lang, { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // missing values last
    return sign * (a - b);
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
}

document.querySelectorAll("table.sortable").forEach(makeSortable);

// Open all details in print.
const opened = [];
addEventListener("beforeprint", () => {
  document.querySelectorAll("details:not([open], .long)").forEach((one) => {
    one.open = true;
    opened.push(one);
  });
});
addEventListener("afterprint", () => opened.splice(0).forEach((one) => (one.open = false)));
