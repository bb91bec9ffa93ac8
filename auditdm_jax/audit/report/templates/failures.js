
"use strict";
// Filters and sorts the rows that are on the page already; without it all of them are shown.
{
  const one = (id) => document.getElementById(id);
  const list = one("finds"), search = one("search"), sort = one("sort"), status = one("status");
  const rows = [...list.children];
  const selects = [...document.querySelectorAll("select[data-filter]")];
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase() + " " + row.id]));
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const keys = new Map(rows.map((row, i) => [row, {
    ...row.dataset, place: i, question: row.querySelector(".question").textContent,
  }]));

  for (const select of selects) {
    const counts = new Map();
    for (const row of rows) {
      const value = row.dataset[select.dataset.filter];
      counts.set(value, (counts.get(value) ?? 0) + 1);
    }
    for (const [value, n] of [...counts].sort((a, b) => compare(a[0], b[0]))) {
      const option = new Option(`${value} (${n})`, value);
      select.add(option);
    }
    select.parentElement.hidden = counts.size < 2;
  }

  const show = () => {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    for (const row of rows) {
      const text = words.get(row);
      row.hidden = !(selects.every((s) => !s.value || row.dataset[s.dataset.filter] === s.value)
        && wanted.every((word) => text.includes(word)));
      n += !row.hidden;
    }
    one("nothing").hidden = n > 0;
    status.textContent = `${n.toLocaleString("en")} of ${rows.length.toLocaleString("en")} shown`;
  };

  const order = () => {
    const by = sort.value, sign = by === "grade" ? -1 : 1;
    list.append(...[...rows].sort((a, b) =>
      sign * compare(keys.get(a)[by], keys.get(b)[by]) || keys.get(a).place - keys.get(b).place));
  };

  const clear = () => {
    search.value = "";
    for (const select of selects) select.value = "";
    show();
  };

  // A permanent link shows its failure whatever is filtered.
  const follow = () => {
    const row = document.getElementById(decodeURIComponent(location.hash.slice(1)).replace(/^zoom-/, ""));
    if (row?.hidden) {
      clear();
      row.scrollIntoView();
    }
  };

  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, 120);
  });
  for (const select of selects) select.addEventListener("change", show);
  sort.addEventListener("change", order);
  one("clear").addEventListener("click", clear);
  one("again").addEventListener("click", clear);
  addEventListener("hashchange", follow);
  one("filters").hidden = false;
  show();
  follow();
}
