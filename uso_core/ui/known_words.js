() => {
  // The words of the prompt that the model does not know; one that it knows takes the first one's place, or the end.
  const place = () => document.querySelector("#known-words [data-words]");
  const field = () => document.querySelector("#prompt textarea");
  const unknown = () => {
    const known = new Set(place().dataset.words.split(" "));
    const words = field().value.match(/[\p{L}\p{N}]+/gu) || [];
    return [...new Set(words)].filter((word) => word.length > 1 && !known.has(word.toLowerCase()));
  };
  const look = () => {
    if (!place() || !field()) return;
    const words = unknown();
    const told = words.join(", ");
    if (place().querySelector("b").textContent !== told) place().querySelector("b").textContent = told;
    const said = place().querySelector("span");
    if (said.hidden === words.length > 0) said.hidden = !words.length;
  };
  document.addEventListener("input", (event) => { if (event.target === field()) look(); });
  document.addEventListener("click", (event) => {
    const word = event.target.closest?.("#known-words button")?.textContent;
    if (!word) return;
    const [first] = unknown();
    const text = field().value;
    const at = first ? text.search(new RegExp(`(?<![\\p{L}\\p{N}])${first}(?![\\p{L}\\p{N}])`, "u")) : text.length;
    const before = text.slice(0, at);
    const gap = first || !before || before.endsWith(" ") ? "" : " ";
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set
      .call(field(), before + gap + word + text.slice(at + (first || "").length));
    field().dispatchEvent(new Event("input", { bubbles: true }));
    field().focus();
  });
  new MutationObserver(look).observe(document.querySelector("#form"), { childList: true, subtree: true });
  setInterval(look, 1000);  // whatever else fills the form
}
