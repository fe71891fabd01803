() => {
  // What calls for attention when an image is done and the page is not looked at; and the list of keys.
  const place = document.querySelector("#switches div");
  const BELL = '<svg width="16" height="16" viewBox="0 0 16 16" fill="none" stroke="currentColor" stroke-width="1.5" aria-hidden="true">' +
    '<path d="M3.5 11.5V7a4.5 4.5 0 0 1 9 0v4.5l1 1h-11zM6.5 14.5h3"/></svg>';
  const NOTIFY = "uso-notify", SOUND = "uso-sound";

  const choice = (name, label, changed) => {
    const box = make("input", { type: "checkbox", checked: stored(name) === "yes" });
    box.addEventListener("change", async () => {
      if (box.checked && changed && !(await changed())) box.checked = false;
      store(name, box.checked ? "yes" : "no");
    });
    return make("label", {}, box, label);
  };
  const told = make("small", { textContent: "" });
  const allowed = async () => {
    const answer = "Notification" in window ? await Notification.requestPermission() : "denied";
    told.textContent = answer === "granted" ? "" : words.notify_refused;
    return answer === "granted";
  };
  const menu = make("details", { className: "menu" }, make("summary", { innerHTML: BELL, title: words.notify, ariaLabel: words.notify }),
    make("div", {}, choice(NOTIFY, words.notify_me, allowed), told, choice(SOUND, words.play_sound)));
  const help = make("button", { type: "button", className: "for-keys", textContent: "?", title: words.shortcuts, ariaLabel: words.shortcuts });
  place.prepend(menu, help);

  const ring = () => {
    const audio = new AudioContext();
    for (const [pitch, begin] of [[660, 0], [880, 0.15]]) {
      const tone = new OscillatorNode(audio, { frequency: pitch });
      const loudness = new GainNode(audio, { gain: 0 });
      loudness.gain.setValueAtTime(0.15, audio.currentTime + begin);
      loudness.gain.exponentialRampToValueAtTime(0.001, audio.currentTime + begin + 0.4);
      tone.connect(loudness).connect(audio.destination);
      tone.start(audio.currentTime + begin);
      tone.stop(audio.currentTime + begin + 0.5);
    }
    setTimeout(() => audio.close(), 1000);
  };
  let running = false;
  new MutationObserver(() => {
    const track = document.querySelector("#status .track");
    const now = track?.dataset.running === "true";
    if (running && !now && document.hidden) {
      if (stored(NOTIFY) === "yes" && window.Notification?.permission === "granted") {
        const sentence = document.querySelector("#status .sentence").textContent.trim();
        const done = parseFloat(document.querySelector("#status .bar")?.style.width) === 100; // not stopped, nor failed
        const more = { tag: "uso", icon: document.querySelector("#result img")?.src };
        const note = new Notification(done ? words.image_is_ready : sentence, done ? { body: sentence, ...more } : more);
        note.addEventListener("click", () => { window.focus(); note.close(); });
      }
      if (stored(SOUND) === "yes") ring();
    }
    running = now;
  }).observe(document.querySelector("#status"), { childList: true, subtree: true, attributes: true });

  const KEYS = [
    ["Ctrl + Enter", words.keys_run], ["?", words.keys_list], ["Enter", words.keys_lightbox], ["← →", words.keys_move],
    ["R · C · T", words.keys_use], ["S", words.keys_star], ["Del", words.keys_delete], ["Esc", words.keys_leave],
  ];
  const list = () => {
    const close = make("button", { type: "button", className: "apply", textContent: words.close });
    const rows = KEYS.map(([key, what]) => make("tr", {}, make("th", { scope: "row" }, make("kbd", { textContent: key })),
      make("td", { textContent: what })));
    const dialog = make("dialog", { className: "crop keys", ariaLabel: words.shortcuts },
      make("h2", { textContent: words.shortcuts }), make("table", {}, make("tbody", {}, ...rows)), make("div", { className: "bar" }, close));
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    openDialog(dialog);
  };
  help.addEventListener("click", list);
  document.addEventListener("keydown", (event) => {
    const writing = event.target.matches?.("input, textarea, select, [contenteditable]");
    if (event.key === "?" && !writing && !document.querySelector("dialog[open]")) list();
  });
}
