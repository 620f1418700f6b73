"use strict";
(() => {
  const told = (row, column) => {
    const cell = row.cells[column];
    const text = cell.textContent.trim();
    return text === "" ? null : cell.dataset.value === undefined ? text : Number(cell.dataset.value);
  };

  // Numbers before texts; what is empty comes last, whichever way round.
  const compare = (one, other, turn) => {
    if (one === null || other === null) return (one === null) - (other === null);
    if (typeof one !== typeof other) return typeof one === "number" ? -turn : turn;
    if (typeof one === "number") return turn * (one - other);
    return turn * one.localeCompare(other, undefined, { numeric: true });
  };

  const sort = (table, column, turn) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, place) => ({ row, place, value: told(row, column) }));
    rows.sort((a, b) => compare(a.value, b.value, turn) || a.place - b.place);
    body.append(...rows.map((one) => one.row));
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const one of heads) one.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        sort(table, column, down ? -1 : 1);
      });
    });
  }

  for (const hint of document.querySelectorAll(".hint")) hint.hidden = false;

  const filters = document.querySelector(".filters");
  if (filters) {
    const chosen = [...filters.querySelectorAll("select")];
    const cards = [...document.querySelectorAll(".card")];
    const fits = (card, select) => {
      if (select.value === "") return true;
      const has = card.dataset[select.dataset.filter];
      return select.dataset.filter === "level" ? has.split(" ").includes(select.value) : has === select.value;
    };
    const show = () => {
      for (const card of cards) card.hidden = !chosen.every((select) => fits(card, select));
      const left = cards.filter((card) => !card.hidden).length;
      filters.querySelector("output").textContent = `${left} of ${cards.length} questions`;
    };
    for (const select of chosen) select.addEventListener("change", show);
    filters.hidden = chosen.length === 0;
    show();
  }
})();
