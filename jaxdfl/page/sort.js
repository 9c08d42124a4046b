// A click on a header sorts its table by that column: numbers falling first, words rising first; again turns it round.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, place) => {
    header.querySelector("button").addEventListener("click", () => {
      const words = header.classList.contains("words");
      const before = header.getAttribute("aria-sort");
      const rising = before ? before === "descending" : words;
      const value = (row) => (words ? row.cells[place].dataset.value : parseFloat(row.cells[place].dataset.value));
      const order = (one, other) => {
        const [a, b] = [value(one), value(other)];
        if (words) return rising ? a.localeCompare(b) : b.localeCompare(a);
        if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b); // what is missing stays below
        return rising ? a - b : b - a;
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(order));
      headers.forEach((each) => each.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", rising ? "ascending" : "descending");
    });
  });
}
