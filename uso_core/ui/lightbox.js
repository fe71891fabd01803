() => {
  // An image of the history or of this session, large: what is shown is what is selected.
  const GRIDS = ["#history-images", "#visit"];
  let wished = null; // a card's key
  const cardsOf = (grid) => [...grid.querySelectorAll("button[data-full]")];

  const tell = (grid, event, detail) => grid.querySelector("section")?.parentElement
    .dispatchEvent(new CustomEvent(event, { bubbles: true, detail }));

  const open = (grid, key) => {
    const act = (action) => tell(grid, "act", { key, action });
    const image = make("img", { alt: "" });
    const caption = make("p", {});
    const button = (textContent, action, title) => {
      const made = make("button", { type: "button", textContent, title: title || "" });
      made.addEventListener("click", action);
      return made;
    };
    const leave = (action) => () => { dialog.close(); act(action); };
    const star = button("", () => {
      const on = star.getAttribute("aria-pressed") !== "true";
      show.starred(on);
      act(on ? "star" : "unstar");
    }, "S");
    const remove = button(words.delete, (event) => {
      if (event.detail > 1) return; // a double click has not read the question
      if (!remove.dataset.sure) {
        remove.dataset.sure = "true";
        remove.textContent = words.delete_sure;
        return;
      }
      const cards = cardsOf(grid);
      const place = cards.findIndex((card) => card.dataset.key === key);
      const next = cards[place + 1] || cards[place - 1];
      act("delete");
      if (next) show(next); else dialog.close();
    }, "Del");
    remove.className = "remove";
    const download = make("a", { textContent: words.download, title: "D", download: "" });
    const steps = [-1, 1].map((way) => {
      const made = button(way < 0 ? "‹" : "›", () => move(way), way < 0 ? "←" : "→");
      made.className = "step";
      made.ariaLabel = way < 0 ? words.previous : words.next;
      return made;
    });
    const close = button("×", () => dialog.close(), "Esc");
    close.className = "close";
    close.ariaLabel = words.close;
    const dialog = make("dialog", { className: "lightbox", ariaLabel: words.image },
      make("div", { className: "place" }, steps[0], image, steps[1]), caption,
      make("div", { className: "bar" },
        button(words.restore_settings, leave("restore"), "R"), button(words.use_as_content, leave("content"), "C"),
        button(words.use_as_style, leave("style"), "T"), star, download, remove), close);

    let telling = 0;
    const show = (card, chosen = true) => {
      key = card.dataset.key;
      image.src = download.href = card.dataset.full;
      caption.textContent = card.title;
      delete remove.dataset.sure;
      remove.textContent = words.delete;
      show.starred(card.dataset.starred === "true");
      star.hidden = card.dataset.passing === "true"; // there is no history to star it in
      tell(grid, "press", [key]);
      if (grid === visit) wish(key);
      clearTimeout(telling);
      if (chosen) telling = setTimeout(() => act(""), 200); // not for each image that is only passed by
    };
    show.starred = (on) => {
      star.setAttribute("aria-pressed", String(on));
      star.textContent = `${on ? "★" : "☆"} ${words.star}`;
    };
    const move = (way) => {
      const cards = cardsOf(grid);
      const next = cards[cards.findIndex((card) => card.dataset.key === key) + way];
      if (next) show(next);
    };
    // Small images at a whole multiple of their size, sharp.
    image.addEventListener("load", () => {
      const room = innerWidth * (innerWidth > 768 ? 0.8 : 0.96);
      const scale = Math.min(room / image.naturalWidth, innerHeight * 0.7 / image.naturalHeight);
      const times = Math.floor(scale);
      image.style.width = scale > 1 ? `${Math.round((times >= 2 ? times : scale) * image.naturalWidth)}px` : "";
      image.classList.toggle("whole", times >= 2);
    });
    const KEYS = {
      ArrowLeft: () => move(-1), ArrowRight: () => move(1), Delete: () => remove.click(), s: () => star.hidden || star.click(),
      d: () => download.click(), r: leave("restore"), c: leave("content"), t: leave("style"),
    };
    dialog.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in KEYS)) return;
      event.preventDefault();
      if (!event.repeat || event.key.startsWith("Arrow")) KEYS[event.key](); // a key that is held is one wish
    });
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => {
      dialog.remove();
      cardsOf(grid).find((card) => card.dataset.key === key)?.focus();
    });
    const first = cardsOf(grid).find((card) => card.dataset.key === key) || cardsOf(grid)[0];
    if (!first) return;
    show(first, false);
    openDialog(dialog);
  };

  // Of this session's images the one that is shown is the chosen one, unless another was chosen that is on its way.
  const visit = document.querySelector("#visit");
  const nameOf = (image) => image && decodeURIComponent(image.src.split("/").pop()); // it is the card's key
  const wish = (key) => { wished = key === nameOf(document.querySelector("#result img")) ? null : key; };
  document.querySelector("#result").addEventListener("load", (event) => {
    const name = nameOf(event.target);
    const awaited = wished !== name && cardsOf(visit).some((card) => card.dataset.key === wished);
    if (name === "preview.png" || awaited) return;
    wished = null;
    tell(visit, "press", [name]);
  }, true);
  document.addEventListener("click", (event) => {
    const seen = event.target.closest("#visit button[data-full]");
    if (seen) wish(seen.dataset.key);
    const card = event.target.closest("#history-images button[data-full]");
    if (card && !card.closest(".several")) open(card.closest("#history-images"), card.dataset.key);
    // By keyboard a card of this session opens at once.
    const chosen = event.detail === 0 && event.target.closest("#visit button[data-full][aria-pressed=true]");
    if (chosen) return open(chosen.closest("#visit"), chosen.dataset.key);
    // The result is one of this session's, or of the history: it is the pressed card there.
    if (!event.target.closest("#result img") && !event.target.closest("#result button")?.querySelector("img")) return;
    for (const grid of GRIDS.toReversed().map((each) => document.querySelector(each))) {
      const name = document.querySelector("#result img").src.split("/").pop();
      const found = grid && cardsOf(grid).find((each) => each.dataset.full.endsWith(`/${name}`));
      if (found) return open(grid, found.dataset.key);
    }
  });
  document.addEventListener("dblclick", (event) => {
    const card = event.target.closest("#visit button[data-full]");
    if (card) open(card.closest("#visit"), card.dataset.key);
  });
}
