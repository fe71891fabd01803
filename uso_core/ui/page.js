() => {
  const find = (selector) => document.querySelector(selector);
  const create = find("#create");

  // Light or dark, and the language: both are remembered by the browser; a language needs the page anew.
  const THEME = "uso-theme";
  if (stored(THEME)) document.body.classList.toggle("dark", stored(THEME) === "dark");
  const theme = make("button", { type: "button", textContent: "◐", title: words.light_or_dark, ariaLabel: words.light_or_dark });
  theme.addEventListener("click", () => store(THEME, document.body.classList.toggle("dark") ? "dark" : "light"));
  const choice = make("select", { ariaLabel: words.language }, ...Object.entries({ en: "English", de: "Deutsch", zh: "中文", ja: "日本語" })
    .map(([value, textContent]) => make("option", { value, textContent, selected: words === languages[value] })));
  choice.addEventListener("change", () => {
    document.cookie = `uso_language=${choice.value}; path=/; max-age=31536000; samesite=lax`;
    location.reload();
  });
  find("#switches").replaceChildren(make("div", {}, theme, choice));  // attention.js adds to it

  // Ctrl+Enter starts a run where the form is seen.
  document.addEventListener("keydown", (event) => {
    const wished = event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.repeat;
    if (wished && create.offsetParent && !find("dialog[open]")) find("#generate").click();
  });
  // Gradio's dropdown tells "input" whenever it is left, and "select" of a press alone, so the page listens to "select":
  // Enter is a press on the option it stands on.
  document.addEventListener("keydown", (event) => {
    const option = event.key === "Enter" && document.getElementById(event.target.getAttribute("aria-activedescendant"));
    if (!option || !event.target.readOnly) return; // where one may type, Gradio tells of changes
    if (event.ctrlKey || event.metaKey) return event.target.blur(); // it starts a run
    event.stopImmediatePropagation();
    option.dispatchEvent(new MouseEvent("mousedown", { bubbles: true, cancelable: true }));
  }, true);
  // A menu closes at a press elsewhere, and at Escape.
  const menus = () => [...document.querySelectorAll("details.menu[open]")];
  document.addEventListener("pointerdown", (event) => {
    for (const menu of menus()) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    for (const menu of menus()) {
      menu.open = false;
      if (menu.contains(document.activeElement)) menu.querySelector("summary").focus();
    }
  });
  // From the first run on, the examples make room for the image.
  // On a phone the image's place may be out of sight, or behind the prompt; the page may move once the image is there.
  const bring = () => {
    const place = find("#result").getBoundingClientRect();
    const end = innerWidth > 768 ? innerHeight : find("#ask").getBoundingClientRect().top;
    if (place.top >= 0 && place.bottom <= end || innerWidth > 768 && place.top < innerHeight * 0.75) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    find("#result").scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  };
  let awaited = false; // an image, until the user scrolls
  find("#generate").addEventListener("click", (event) => {
    if (event.detail > 1) return event.stopImmediatePropagation(); // a double click is one wish
    for (const told of document.querySelectorAll("[data-testid=toast-close]")) told.click(); // of what was tried before
    awaited = true;
    fetch(location.pathname, { method: "HEAD", cache: "no-store" }).catch(() => {
      find("#status .sentence").textContent = words.no_connection;
    });
    const field = find("#prompt textarea");
    if (field && !field.value.trim() && !find(".slot.column img")) field.focus(); // the server says what is missing
  }, true);
  // A double click is one wish here too; and what deletes asks first, which a double click has not read.
  document.addEventListener("click", (event) => {
    if (event.detail > 1 && event.target.closest("button.stop, #actions button, #grid-start, #preset-delete")) event.stopImmediatePropagation();
  }, true);
  for (const kind of ["wheel", "touchmove"]) addEventListener(kind, () => { awaited = false; }, { passive: true });

  for (const name of ["stop", "skip"]) find(`#${name}`).title = words[`${name}_hint`];

  // While something runs: Stop and Skip show it, the title tells how far it is, and leaving asks first.
  const title = document.title;
  let running = false;
  const follow = () => {
    const bar = find("#status .bar");
    const percent = bar ? parseFloat(bar.style.width) : 0;
    running = find("#status .track")?.dataset.running === "true";
    create.classList.toggle("running", running);
    if (running && !create.classList.contains("ran")) {
      create.classList.add("ran");
      if (awaited) bring();
    }
    const told = running ? `${Math.round(percent)} % · ${title}` : title;
    if (document.title !== told) document.title = told;
  };
  addEventListener("beforeunload", (event) => {
    if (running || find("#visit [data-passing=true]")) event.preventDefault(); // what is private is nowhere else
  });

  // Small images at a whole multiple of their size, sharp. A preview has an eighth of the size and takes the same place.
  const fit = () => {
    const image = find("#result img");
    if (!image) return;
    create.classList.add("ran");
    const preview = image.src.endsWith("/preview.png");
    const [width, height] = [image.naturalWidth, image.naturalHeight].map((side) => side * (preview ? 8 : 1));
    const room = image.closest(".image-container").getBoundingClientRect();
    const times = Math.floor(Math.min(room.width / width, room.height / height));
    image.classList.toggle("whole", times >= 2);
    image.classList.toggle("preview", preview);
    image.style.width = times >= 2 ? `${times * width}px` : "";
    image.style.height = times >= 2 ? `${times * height}px` : "";
  };
  find("#result").addEventListener("load", () => {
    fit();
    if (awaited) bring();
  }, true);
  addEventListener("resize", fit);
  // Where the prompt sticks to the bottom, what lies behind it can be scrolled into sight.
  new ResizeObserver(() => create.style.setProperty("--ask", `${find("#ask").offsetHeight}px`)).observe(find("#ask"));

  // The tab is part of the address: Back leads to the tab before, a reload stays where it was.
  const bar = find("#tabs > .tab-wrapper");
  const tab = (name) => [...bar.querySelectorAll("[role=tab]")].find((each) => each.dataset.tabId === name);
  const opened = () => bar.querySelector("[role=tab][aria-selected=true]")?.dataset.tabId;
  const asked = () => tab(location.hash.slice(1)) ? location.hash.slice(1) : "create";
  const turn = () => { if (asked() !== opened()) tab(asked()).click(); };
  addEventListener("popstate", () => {
    for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
    turn();
  });
  turn();
  new MutationObserver(() => {
    if (opened() && opened() !== asked()) history.pushState(null, "", `#${opened()}`);
  }).observe(bar, { attributes: true, subtree: true, attributeFilter: ["aria-selected"] });

  // A slider's number is the field itself to whoever reads or fills the form; Gradio calls it "number input for Steps".
  const rename = () => {
    for (const input of document.querySelectorAll('input[type=number][aria-label^="number input for "]'))
      input.setAttribute("aria-label", input.getAttribute("aria-label").slice("number input for ".length));
  };
  // A label with a Copy button in it names the button, not the field.
  const name = () => {
    for (const field of document.querySelectorAll("label :is(textarea, input)")) {
      const label = field.closest("label");
      if (label.control !== field && label.control?.tagName === "BUTTON" && !field.ariaLabel)
        field.ariaLabel = label.querySelector("[data-testid=block-info]")?.textContent.trim() || "";
    }
  };
  // Gradio calls every upload "Drop an image file here": the group around it says which image it is for. Folded slots
  // come later.
  const group = () => {
    for (const slot of document.querySelectorAll(".slot.column:not([role])")) {
      const name = slot.querySelector("label, [data-testid=block-label]");
      if (!name) continue;
      slot.setAttribute("role", "group");
      slot.setAttribute("aria-label", name.innerText.trim());
    }
  };
  // An image is a button without a name to Gradio.
  const describe = () => {
    for (const image of document.querySelectorAll('#create button img[alt=""]')) {
      const label = image.closest(".block")?.querySelector("[data-testid=block-label]")?.textContent.trim();
      if (label) image.alt = label;
    }
  };
  // Gradio heads every refusal with "Error", in any language.
  const head = () => {
    for (const place of document.querySelectorAll(".toast-title.error")) {
      const text = place.firstChild;
      if (text?.nodeType === Node.TEXT_NODE && text.data.trim() === "Error") text.data = `${words.please_change} `;
    }
  };
  const look = () => { rename(); name(); describe(); group(); head(); follow(); };
  look();
  new MutationObserver(look).observe(document.body, { childList: true, subtree: true });
  document.body.dataset.script = "ready";
}
