// Server-sent events over `fetch`, which unlike EventSource can send an API key and be aborted by a signal.

import {send} from "./api.js";

const PAUSES = [0.5, 1, 2, 5, 10];

/**
 * Follow a stream of events until it is over: `onEvent(type, data)` is called for each, `onState(text)` with "live",
 * "waiting" (the connection broke and will be retried) and "over". Resumes after the last event if the stream has ids; one
 * that never `ends` has none, and the event "reconnected" means that events may have been missed. No connection is kept
 * open while the page is hidden: a browser opens at most six to one server.
 */
export async function follow(path, onEvent, {signal, onState = () => {}, ends = true}) {
  const position = {last: null, over: false};
  for (let failures = 0, connections = 0; !signal.aborted && !position.over; ) {
    await visible(signal);
    const hidden = new AbortController();
    const whenHidden = () => document.hidden && hidden.abort();
    document.addEventListener("visibilitychange", whenHidden);
    try {
      const headers = position.last ? {"Last-Event-ID": position.last} : {};
      const response = await send(path, {signal: AbortSignal.any([signal, hidden.signal]), headers});
      if (response.status === 204) position.over = true;
      else {
        onState("live");
        failures = 0;
        if (connections++ && !ends) onEvent("reconnected", null);
        await read(response, onEvent, position);
      }
    } catch (error) {
      if (signal.aborted) return;
      // An abort that is not due to a hidden page means that the user dismissed the sign-in.
      if (!hidden.signal.aborted && (error.name === "AbortError" || [401, 403, 404].includes(error.status))) throw error;
    } finally {
      document.removeEventListener("visibilitychange", whenHidden);
    }
    if (position.over || signal.aborted) break;
    if (document.hidden) continue;
    onState("waiting");
    await pause(PAUSES[Math.min(failures++, PAUSES.length - 1)], signal);
  }
  onState("over");
}

async function read(response, onEvent, position) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) dispatch(block, onEvent, position);
  }
}

function dispatch(block, onEvent, position) {
  const fields = {event: "message", data: []};
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (name === "data") fields.data.push(value);
    else if (name) fields[name] = value;
  }
  if (fields.id) position.last = fields.id;
  if (!fields.data.length) return;
  onEvent(fields.event, JSON.parse(fields.data.join("\n")));
  if (fields.event === "completed") position.over = true;
}

function visible(signal) {
  return new Promise((resolve) => {
    const check = () => (!document.hidden || signal.aborted) && resolve();
    document.addEventListener("visibilitychange", check, {signal});
    signal.addEventListener("abort", resolve, {once: true});
    check();
  });
}

function pause(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), {once: true});
  });
}
