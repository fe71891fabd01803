() => {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) document.querySelector("#generate").click();
  });
  // On a phone the image's place may be out of sight, from the examples above all.
  document.querySelector("#generate").addEventListener("click", () => {
    if (document.querySelector("#result").getBoundingClientRect().top < innerHeight * 0.75) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    document.querySelector("#start").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
  });
  // A PNG dropped beside the image slots restores the settings in it; the slots keep their own drops.
  const outside = (event) =>
    event.dataTransfer && [...event.dataTransfer.types].includes("Files") && !event.target.closest(".slot");
  document.addEventListener("dragover", (event) => {
    document.body.classList.toggle("dropping", Boolean(outside(event)));
    if (outside(event)) event.preventDefault();
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    const input = document.querySelector("input[type=file][accept*=json]");
    if (!outside(event) || !input || !event.dataTransfer.files.length) return;
    event.preventDefault();
    input.files = event.dataTransfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
  // A slider's number is the field itself to whoever reads or fills the form; Gradio calls it "number input for Steps".
  const rename = () => {
    for (const input of document.querySelectorAll('input[type=number][aria-label^="number input for "]'))
      input.setAttribute("aria-label", input.getAttribute("aria-label").slice("number input for ".length));
  };
  rename();
  new MutationObserver(rename).observe(document.body, { childList: true, subtree: true });
  // Gradio calls every upload "Drop an image file here": the group around it says which image it is for.
  for (const slot of document.querySelectorAll(".slot.column")) {
    slot.setAttribute("role", "group");
    slot.setAttribute("aria-label", slot.querySelector("label, [data-testid=block-label]").innerText.trim());
  }
  document.body.dataset.script = "ready";
}
