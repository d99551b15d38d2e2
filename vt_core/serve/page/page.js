// Chat with the server that this page comes from. Text of the model is only ever set as text, never as HTML.
"use strict";

const find = (id) => document.getElementById(id);
let messages = [];
let running = null;

function add(kind, text = "") {
  const element = document.createElement("div");
  element.className = kind;
  element.textContent = text;
  const chat = find("chat");
  const atEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 40;
  chat.append(element);
  if (atEnd) chat.scrollTop = chat.scrollHeight;
  return element;
}

function headers() {
  const key = find("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

function request() {
  const system = find("system").value.trim();
  const body = {
    model: find("model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    stream: true,
    stream_options: { include_usage: true },
  };
  for (const name of ["temperature", "top_p", "seed", "max_tokens"]) {
    const value = find(name).value;
    if (value !== "") body[name] = Number(value);
  }
  if (find("approximate").checked) body.vt = { approximate: true };
  return JSON.stringify(body);
}

async function fail(response) {
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not from the server itself: the status has to do.
  }
  throw new Error(message);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

function summary(vt, usage, seconds) {
  const parts = [];
  if (usage) parts.push(`${usage.prompt_tokens} + ${usage.completion_tokens} tokens`);
  if (usage?.prompt_tokens_details?.cached_tokens) parts.push(`${usage.prompt_tokens_details.cached_tokens} cached`);
  if (vt?.tokens_per_s) parts.push(`${vt.tokens_per_s.toFixed(1)} tokens/s`);
  parts.push(`${seconds.toFixed(1)} s`);
  if (vt) parts.push(vt.exact ? `exact, ${vt.rescued} rescued` : "approximate");
  if (vt?.drafted) parts.push(`${vt.accepted} of ${vt.drafted} drafted`);
  return parts.join(" · ");
}

async function answer() {
  const turns = messages;  // "New chat" starts another list
  running = new AbortController();
  find("send").hidden = true;
  find("stop").hidden = false;
  const started = performance.now();
  let thought = null, shown = null, text = "", vt = null, usage = null;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: request(), signal: running.signal,
    });
    if (!response.ok) await fail(response);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      vt = event.vt ?? vt;
      usage = event.usage ?? usage;
      const delta = event.choices[0]?.delta ?? {};
      if (delta.reasoning_content) {
        thought ??= add("turn thought");
        thought.textContent += delta.reasoning_content;
      }
      if (delta.content) {
        shown ??= add("turn assistant");
        text += delta.content;
        shown.textContent = text;
      }
    }
    add("facts", summary(vt, usage, (performance.now() - started) / 1000));
  } catch (error) {
    if (error.name === "AbortError") add("facts", "stopped");
    else add("error", error.message);
  } finally {
    if (text) turns.push({ role: "assistant", content: text });
    else if (!find("prompt").value) find("prompt").value = turns.pop().content;  // to be sent again
    running = null;
    find("send").hidden = false;
    find("stop").hidden = true;
  }
}

find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = find("prompt").value;
  if (running || !text.trim()) return;
  find("prompt").value = "";
  messages.push({ role: "user", content: text });
  add("turn user", text);
  answer();
});

find("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    find("form").requestSubmit();
  }
});

find("stop").addEventListener("click", () => running?.abort());

find("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  find("chat").replaceChildren();
});

async function listModels() {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) await fail(response);
    const { data } = await response.json();
    find("model").replaceChildren(...data.map(({ id }) => new Option(id, id)));
  } catch (error) {
    add("error", error.message);
  }
}

find("key").addEventListener("change", listModels);
listModels();
