// Server-sent events over `fetch`, which unlike EventSource can carry a key and be aborted by a signal.

import {send} from "./api.js";

const PAUSES = [0.5, 1, 2, 5, 10];

/**
 * Follow a stream of events until it is over: `heard(type, data)` for each. `state(text)` is told "live", "waiting"
 * (the connection broke and will be tried again) and "over". Resumes after the last event where the stream has ids;
 * one that never `ends` has none, and "reconnected" tells that something may have been missed. Nothing is kept open while the page cannot be seen: a browser gives one server six connections at most.
 */
export async function follow(path, heard, {signal, state = () => {}, ends = true}) {
  const place = {last: null, over: false};
  for (let failures = 0, connections = 0; !signal.aborted && !place.over; ) {
    await visible(signal);
    const hidden = new AbortController();
    const whenHidden = () => document.hidden && hidden.abort();
    document.addEventListener("visibilitychange", whenHidden);
    try {
      const headers = place.last ? {"Last-Event-ID": place.last} : {};
      const response = await send(path, {signal: AbortSignal.any([signal, hidden.signal]), headers});
      if (response.status === 204) place.over = true;
      else {
        state("live");
        failures = 0;
        if (connections++ && !ends) heard("reconnected", null);
        await read(response, heard, place);
      }
    } catch (error) {
      if (signal.aborted) return;
      // What was given up, but not because the page is hidden, was given up by a reader without a key.
      if (!hidden.signal.aborted && (error.name === "AbortError" || [401, 403, 404].includes(error.status))) throw error;
    } finally {
      document.removeEventListener("visibilitychange", whenHidden);
    }
    if (place.over || signal.aborted) break;
    if (document.hidden) continue;
    state("waiting");
    await pause(PAUSES[Math.min(failures++, PAUSES.length - 1)], signal);
  }
  state("over");
}

async function read(response, heard, place) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) tell(block, heard, place);
  }
}

function tell(block, heard, place) {
  const fields = {event: "message", data: []};
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (name === "data") fields.data.push(value);
    else if (name) fields[name] = value;
  }
  if (fields.id) place.last = fields.id;
  if (!fields.data.length) return;
  heard(fields.event, JSON.parse(fields.data.join("\n")));
  if (fields.event === "completed") place.over = true;
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
