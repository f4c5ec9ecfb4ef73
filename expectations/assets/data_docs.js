// Stands in for jQuery and its plugins, of which the pages of the Data Docs use what is written here and no more.
"use strict";
(() => {
  const wrap = (nodes) => ({
    parent: () => wrap(nodes.map((node) => node.parentElement).filter(Boolean)),
    each: (visit) => nodes.forEach((node, number) => visit(number, node)),
    fadeIn: () => nodes.forEach((node) => { node.hidden = false; }),
    fadeOut: () => nodes.forEach((node) => { node.hidden = true; }),
    prepend: (html) => nodes.forEach((node) => node.insertAdjacentHTML("afterbegin", html)),
    removeClass: (name) => nodes.forEach((node) => node.classList.remove(name)),
    ready: (run) => run(),
    on: () => {},
    modal: () => {},
    bootstrapTable: (options) => { if (options.columns) nodes.forEach((node) => fill(node, options)); },
  });
  window.$ = (found) => wrap(typeof found === "string" ? [...document.querySelectorAll(found)] : [found]);

  // The cells are HTML that Great Expectations has escaped.
  const fill = (table, { columns, data, rowAttributes, sortName }) => {
    const key = (row) => row[`_${sortName}_sort`] || 0;
    const head = table.createTHead().insertRow();
    for (const column of columns) head.appendChild(document.createElement("th")).textContent = column.title;
    const body = table.createTBody();
    for (const row of [...data].sort((one, other) => key(other) - key(one))) {
      const line = body.insertRow();
      for (const column of columns) line.insertCell().innerHTML = row[column.field] || "";
      if (rowAttributes && row._table_row_link_path) {
        line.dataset.href = row._table_row_link_path;
        line.addEventListener("click", (event) => { if (!event.target.closest("a")) location.href = line.dataset.href; });
      }
    }
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-toggle=tab], [data-toggle=collapse]");
    if (!link) return;
    event.preventDefault();
    const target = document.querySelector(link.getAttribute("href"));
    if (link.dataset.toggle === "collapse") { target.classList.toggle("show"); return; }
    for (const tab of document.querySelectorAll("[data-toggle=tab]")) tab.classList.toggle("active", tab === link);
    for (const pane of document.querySelectorAll(".tab-pane")) pane.classList.toggle("active", pane === target);
  });
})();
