() => {
  // Gradio's client (seen in 6.31) reads all its events from one stream, which the server closes when none is left. A
  // call that arrives just then may be answered before the client has read of the end: it opens no other stream, and
  // the page never learns how the call went on. The next call opens one, which brings that too: so one that asks for
  // nothing is made where calls are open and no stream is.
  const JOIN = "/queue/join", DATA = "/queue/data";
  const GRACE = 400; // ms in which the client opens a stream by itself
  const MOST = 3; // times that one is made for a call
  const waiting = new Map(); // calls, and how often one was made for each
  let streams = 0;
  const ended = () => {
    streams -= 1;
    setTimeout(() => {
      if (streams) return;
      for (const [call, times] of waiting) if (times < MOST) waiting.set(call, times + 1); else waiting.delete(call);
      if (waiting.size) document.querySelector("#nudge").click();
    }, GRACE);
  };
  const read = async (body) => {
    const lines = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
      for (;;) {
        const { done, value } = await lines.read();
        if (done) break;
        const whole = (rest + value).split("\n");
        rest = whole.pop();
        for (const line of whole) {
          if (!line.includes('"process_completed"') && !line.includes('"unexpected_error"')) continue;
          const { event_id } = JSON.parse(line.slice("data:".length));
          if (event_id) waiting.delete(event_id);
          else waiting.clear(); // it is told to all
        }
      }
    } catch { /* it was given up */ }
    ended();
  };
  const fetched = window.fetch;
  window.fetch = async (...given) => {
    const path = new URL(given[0].url ?? given[0], location).pathname;
    if (path.endsWith(JOIN)) {
      const reply = await fetched(...given);
      if (reply.ok) waiting.set((await reply.clone().json()).event_id, 0);
      return reply;
    }
    if (!path.endsWith(DATA)) return fetched(...given);
    streams += 1;
    try {
      const reply = await fetched(...given);
      const [theirs, ours] = reply.body.tee();
      read(ours);
      return new Response(theirs, reply);
    } catch (error) {
      ended();
      throw error;
    }
  };
}
