"use strict";
// Everything is readable without this script. It filters rules and their failures, and unfolds what a link leads to.
for (const box of document.querySelectorAll(".rule-filter")) {
  const [search, output] = [box.querySelector("input"), box.querySelector("output")];
  const found = [...document.querySelectorAll("[data-rule]")];
  box.hidden = false;
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase().split(/\s+/);
    for (const one of found) one.hidden = !wanted.every((word) => one.dataset.rule.toLowerCase().includes(word));
    const shown = found.filter((one) => one.matches(".rule-line") && !one.hidden).length;
    output.textContent = `${shown.toLocaleString("en")} rule${shown === 1 ? "" : "s"}`;
  });
}
const unfold = () => {
  const target = document.getElementById(location.hash.slice(1));
  for (let one = target; one; one = one.parentElement) if (one.matches("details")) one.open = true;
  // What was opened has moved what follows it.
  if (target) target.scrollIntoView();
};
addEventListener("hashchange", unfold);
if (location.hash) unfold();
