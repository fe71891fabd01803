() => {
  // A Crop button in every image slot that is filled. The part chosen goes into the slot as an upload of its own.
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const LEAST = 0.02; // of a side

  const choose = (image) =>
    new Promise((resolve) => {
      let box = { x: 0.1, y: 0.1, w: 0.8, h: 0.8 }; // in parts of the image
      const frame = make("div", { className: "box", tabIndex: 0, ariaLabel: words.crop_box });
      frame.setAttribute("role", "group");
      const corners = [[0, 0], [1, 0], [0, 1], [1, 1]].map(([right, low]) => {
        const corner = make("i", {});
        corner.style.cssText = `left: ${100 * right}%; top: ${100 * low}%`;
        corner.dataset.right = right;
        corner.dataset.low = low;
        return corner;
      });
      frame.append(...corners);
      const shown = make("img", { src: image.src, alt: "", draggable: false });
      const stage = make("div", { className: "stage" }, shown, frame);
      const apply = make("button", { type: "button", className: "apply", textContent: words.crop_apply });
      const cancel = make("button", { type: "button", textContent: words.cancel });
      const size = make("span", {});
      const dialog = make("dialog", { className: "crop", ariaLabel: words.crop },
        stage, make("div", { className: "bar" }, size, cancel, apply));

      const pixels = () => ({
        x: Math.round(box.x * shown.naturalWidth), y: Math.round(box.y * shown.naturalHeight),
        w: Math.max(Math.round(box.w * shown.naturalWidth), 1), h: Math.max(Math.round(box.h * shown.naturalHeight), 1),
      });
      const show = () => {
        frame.style.cssText =
          `left: ${100 * box.x}%; top: ${100 * box.y}%; width: ${100 * box.w}%; height: ${100 * box.h}%`;
        if (shown.naturalWidth) size.textContent = `${pixels().w} x ${pixels().h}`;
      };
      const between = (ax, ay, bx, by) => {
        const [left, right] = [Math.min(ax, bx), Math.max(ax, bx)].map((value) => clamp(value, 0, 1));
        const [top, bottom] = [Math.min(ay, by), Math.max(ay, by)].map((value) => clamp(value, 0, 1));
        box = { x: Math.min(left, 1 - LEAST), y: Math.min(top, 1 - LEAST),
                w: Math.max(right - left, LEAST), h: Math.max(bottom - top, LEAST) };
      };
      const move = (dx, dy) => {
        box = { ...box, x: clamp(box.x + dx, 0, 1 - box.w), y: clamp(box.y + dy, 0, 1 - box.h) };
      };

      stage.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        const area = shown.getBoundingClientRect();
        const at = (e) => [(e.clientX - area.left) / area.width, (e.clientY - area.top) / area.height];
        const [startX, startY] = at(event);
        const before = box;
        const corner = event.target.dataset.right;
        let drag = ([x, y]) => between(startX, startY, x, y);
        if (corner !== undefined) {
          const fixedX = corner === "1" ? before.x : before.x + before.w;
          const fixedY = event.target.dataset.low === "1" ? before.y : before.y + before.h;
          drag = ([x, y]) => between(fixedX, fixedY, x, y);
        } else if (event.target === frame) {
          drag = ([x, y]) => { box = before; move(x - startX, y - startY); };
        }
        const follow = (e) => { drag(at(e)); show(); };
        stage.setPointerCapture(event.pointerId);
        stage.addEventListener("pointermove", follow);
        stage.addEventListener("pointerup", () => stage.removeEventListener("pointermove", follow), { once: true });
      });
      frame.addEventListener("keydown", (event) => {
        const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [];
        if (dx === undefined) return;
        event.preventDefault();
        if (event.shiftKey) between(box.x, box.y, box.x + box.w + dx * LEAST, box.y + box.h + dy * LEAST);
        else move(dx * LEAST, dy * LEAST);
        show();
      });
      shown.addEventListener("load", show);
      cancel.addEventListener("click", () => dialog.close());
      apply.addEventListener("click", () => {
        const { x, y, w, h } = pixels();
        const canvas = make("canvas", { width: w, height: h });
        canvas.getContext("2d").drawImage(shown, x, y, w, h, 0, 0, w, h);
        canvas.toBlob((blob) => { resolve(blob); dialog.close(); }, "image/png");
      });
      dialog.addEventListener("close", () => { dialog.remove(); resolve(null); });
      openDialog(dialog);
      show();
      frame.focus();
    });

  const crop = async (slot) => {
    const image = slot.querySelector("img");
    const blob = image && (await choose(image));
    const input = slot.querySelector("input[type=file]");
    if (!blob || !input) return;
    const name = decodeURIComponent(image.src.split("/").pop()).replace(/\.\w+$/, "").replace(/-crop$/, "");
    const files = new DataTransfer();
    files.items.add(new File([blob], `${name}-crop.png`, { type: "image/png" }));
    input.files = files.files;
    cropped = slot;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };

  let cropped = null; // the slot that waits for its part
  const offer = () => {
    for (const slot of document.querySelectorAll(".slot.column")) {
      const filled = slot.querySelector("img") !== null;
      const button = slot.querySelector(".crop-button");
      if (filled && !button) {
        const added = make("button", { type: "button", className: "crop-button", textContent: words.crop });
        added.addEventListener("click", () => crop(slot));
        slot.append(added);
        if (cropped === slot) added.focus();
        cropped = null;
      } else if (!filled && button) {
        button.remove();
      }
    }
  };
  offer();
  new MutationObserver(offer).observe(document.body, { childList: true, subtree: true });
}
