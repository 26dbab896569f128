"use strict";
// Everything is readable without this script. It only filters the list of questions by class and text.
for (const form of document.querySelectorAll("form.gsm8k-filter")) {
  const groups = [...form.parentElement.querySelectorAll("section.gsm8k-group")].map((section) => ({
    section,
    items: [...section.querySelectorAll(":scope > details")].map((details) => ({ details, text: null })),
  }));
  const [choice, search, output] = [form.querySelector("select"), form.querySelector("input"), form.querySelector("output")];
  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const { section, items } of groups) {
      const chosen = choice.value === "" || choice.value === section.id
        || (choice.value === "!right" && !section.classList.contains("right"));
      let some = false;
      for (const item of items) {
        item.text ??= item.details.textContent.toLowerCase();
        const match = chosen && item.text.includes(wanted);
        item.details.hidden = !match;
        some ||= match;
        shown += match;
      }
      section.hidden = !some;
    }
    output.textContent = `${shown.toLocaleString("en")} question${shown === 1 ? "" : "s"}`;
  };
  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
}
