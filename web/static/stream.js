// Gradio's client has one stream of messages for all events of a page. The server closes it after the last event that it
// knows of. If an event is joined before the client has read that end, its messages are lost: they wait for a stream that
// the client believes to be open. So the response to a join is held back until the stream has named the event or has ended.
(() => {
  const send = window.fetch, PATIENCE = 10000;
  let open = null;

  // Follow the stream: which events it names, and whether the server closes it.
  async function follow(body, stream) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (let part; !(part = await reader.read()).done;) {
      text += part.value;
      const whole = text.lastIndexOf("\n") + 1; // a message is a line
      for (const line of text.slice(0, whole).split("\n").filter((one) => one.startsWith("data:"))) {
        const message = JSON.parse(line.slice(5));
        if (message.event_id) stream.name(message.event_id);
        if (message.msg === "close_stream") stream.closing = true;
      }
      text = text.slice(whole);
    }
  }

  async function streamed(request) {
    const stop = new AbortController(), named = new Set(), waiting = new Map();
    let end;
    const stream = {
      closing: false,
      over: new Promise((done) => { end = done; }),
      name: (id) => { named.add(id); waiting.get(id)?.(); },
      naming: (id) => new Promise((done) => {
        if (named.has(id)) done();
        else waiting.set(id, done);
      }),
    };
    open = stream;
    // The client drops the stream when it has read that it is closed. The server then ends it by itself; it takes a
    // connection that breaks off for a closed page.
    request.signal.addEventListener("abort", () => { end(); if (!stream.closing) stop.abort(); });
    try {
      const answer = await send(new Request(request, { signal: stop.signal }));
      if (!answer.ok || !answer.body) { end(); return answer; }
      const [mine, theirs] = answer.body.tee();
      follow(mine, stream).catch(() => {}).finally(() => setTimeout(end, PATIENCE));
      return new Response(theirs, answer);
    } catch (error) {
      end();
      throw error;
    }
  }

  async function joined(answer) {
    const stream = open;
    if (!stream || !answer.ok) return;
    const { event_id: id } = await answer.clone().json();
    if (id) await Promise.race([stream.naming(id), stream.over, new Promise((done) => setTimeout(done, PATIENCE))]);
  }

  window.fetch = async (input, options) => {
    const path = new URL(input.url || input, document.baseURI).pathname;
    if (path.endsWith("/queue/data") && input instanceof Request) return streamed(input);
    const answer = await send(input, options);
    if (path.endsWith("/queue/join")) await joined(answer);
    return answer;
  };
})();
