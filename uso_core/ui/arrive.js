() => {
  // Images and settings that are dropped or pasted anywhere but into a slot.
  const give = (input, file) => {
    const files = new DataTransfer();
    files.items.add(file);
    input.files = files.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const PATIENCE = 20000; // ms until the next file has its turn, though the one before has not arrived
  const MOST = 1 << 22; // bytes in which settings are looked for
  const KEYS = ["uso", "workflow", "prompt"]; // of a PNG's texts; a WebP's Exif has "workflow:" or "prompt:"

  const holdsSettings = async (file) => {
    if (/\.json$/i.test(file.name)) return true;
    if (!/\.(png|webp)$/i.test(file.name)) return false;
    const bytes = new Uint8Array(await file.slice(0, MOST).arrayBuffer());
    const text = new TextDecoder("latin1").decode(bytes);
    if (text.startsWith("RIFF")) return /(workflow|prompt):/.test(text);
    return KEYS.some((key) => ["tEXt", "zTXt", "iTXt"].some((kind) => text.includes(`${kind}${key}\0`)));
  };

  const slots = () => [...document.querySelectorAll(".slot.column")];
  const filled = (slot) => slot.querySelector("img") !== null;
  const until = (slot, found) => new Promise((resolve) => {
    if (found()) return resolve(found());
    const observer = new MutationObserver(() => { if (found()) { observer.disconnect(); resolve(found()); } });
    observer.observe(slot, { childList: true, subtree: true });
  });
  const put = async (slot, file) => {
    const input = () => slot.querySelector("input[type=file]");
    // A filled slot has no place to upload to: empty it first.
    if (!input()) slot.querySelector(".icon-button-wrapper button:last-child")?.click();
    give(await until(slot, input), file);
    await Promise.race([until(slot, () => filled(slot)), new Promise((resolve) => setTimeout(resolve, PATIENCE))]);
  };

  const ask = (file) => new Promise((asked) => {
    const address = URL.createObjectURL(file);
    const dialog = make("dialog", { className: "crop", ariaLabel: words.image_for },
      make("p", { textContent: words.image_for }), make("img", { src: address, alt: file.name }));
    const bar = make("div", { className: "bar" });
    const all = slots();
    const styles = all.slice(1);
    const offers = [[words.content, all[0]], [words.style.replace(/\s*\{number\}/, ""), styles.find((each) => !filled(each)) || styles[0]]];
    for (const [textContent, slot] of offers) {
      const button = make("button", { type: "button", className: "apply", textContent });
      button.addEventListener("click", () => { asked(put(slot, file)); dialog.close(); });
      bar.append(button);
    }
    const cancel = make("button", { type: "button", textContent: words.cancel });
    cancel.addEventListener("click", () => dialog.close());
    bar.prepend(make("span", {}), cancel);
    dialog.append(bar);
    dialog.addEventListener("close", () => { URL.revokeObjectURL(address); dialog.remove(); asked(); });
    openDialog(dialog);
  });

  const isImage = (file) => file.type.startsWith("image/") || /\.(heic|heif|avif|tiff?)$/i.test(file.name);
  // Of several files the images are for slots, whether or not they hold settings; of settings the last ones stay.
  const take = async (files, several = files.length > 1) => {
    const restore = document.querySelector("#restore input[type=file], input[type=file][accept*=json]");
    let settings = null;
    for (const file of files) {
      if (isImage(file) && (several || !(await holdsSettings(file)))) await ask(file);
      else settings = file;
    }
    if (settings) give(restore, settings); // which says what it takes
  };

  // Images of this page are dragged into slots by their address.
  const OURS = "application/x-uso-image";
  document.addEventListener("dragstart", (event) => {
    const full = event.target.closest?.("button[data-full]")?.dataset.full || event.target.closest?.("#result img")?.src;
    if (full) event.dataTransfer.setData(OURS, new URL(full, document.baseURI).href);
  });
  const slotBelow = (event) => event.dataTransfer?.types.includes(OURS) && event.target.closest?.(".slot.column");
  document.addEventListener("dragover", (event) => { if (slotBelow(event)) event.preventDefault(); }, true);
  document.addEventListener("drop", async (event) => {
    const slot = slotBelow(event);
    if (!slot) return;
    event.preventDefault();
    event.stopPropagation();
    const address = event.dataTransfer.getData(OURS);
    const reply = await fetch(address);
    if (reply.ok) put(slot, new File([await reply.blob()], address.split("/").pop(), { type: "image/png" }));
  }, true);

  // Of files on a slot the first image is for it, filled or not; the others are asked about.
  document.addEventListener("drop", async (event) => {
    const slot = event.dataTransfer?.files.length && event.target.closest?.(".slot.column");
    if (!slot || event.dataTransfer.types.includes(OURS)) return;
    event.preventDefault();
    event.stopPropagation();
    const files = [...event.dataTransfer.files], first = files.find(isImage);
    if (first) await put(slot, first);
    take(files.filter((each) => each !== first), files.length > 1);
  }, true);

  const outside = (event) =>
    event.dataTransfer?.types.includes("Files") && !event.dataTransfer.types.includes(OURS) && !event.target.closest(".slot, dialog");
  document.addEventListener("dragover", (event) => {
    document.body.classList.toggle("dropping", Boolean(outside(event)));
    if (outside(event)) event.preventDefault();
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!outside(event) || !event.dataTransfer.files.length || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    take([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files || [])];
    if (!files.length || document.querySelector("dialog[open]") || !document.querySelector("#create").offsetParent) return;
    // A word processor puts a picture of the words beside them.
    if (event.target.matches?.("input, textarea") && event.clipboardData.getData("text/plain")) return;
    event.preventDefault();
    take(files);
  });
}
