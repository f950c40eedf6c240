"use strict";

const seconds = (since) => ((performance.now() - since) / 1000).toFixed(2);

function element(name, text) {
  const node = document.createElement(name);
  node.textContent = text;  // as text, never as markup
  return node;
}

function showStream(card) {
  const [start, stop] = card.querySelectorAll("button");
  const state = card.querySelector(".state");
  const output = card.querySelector(".output");
  let hangUp;

  async function run() {
    hangUp = new AbortController();
    start.disabled = true;
    stop.disabled = false;
    output.replaceChildren();
    state.textContent = "Waiting for the first line";
    const started = performance.now();
    let count = 0;
    try {
      const response = await fetch(card.dataset.url, { signal: hangUp.signal });
      if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const lines = (rest + part.value).split("\n");
        rest = lines.pop();  // the beginning of a line of which more is to come
        for (const line of lines) {
          const time = element("span", `${seconds(started).padStart(6)} s  `);
          time.className = "time";
          output.append(time, `${line}\n`);
          count += 1;
        }
        output.scrollTop = output.scrollHeight;
        state.textContent = `${count} received`;
      }
      state.textContent = `${count} received in ${seconds(started)} s`;
    } catch (error) {
      state.textContent = error.name === "AbortError" ? `Hung up after ${count}` : error.message;
    } finally {
      start.disabled = false;
      stop.disabled = true;
    }
  }

  start.addEventListener("click", run);
  stop.addEventListener("click", () => hangUp.abort());
  run();
}

function showUpload(card) {
  const form = card.querySelector("form");
  const state = card.querySelector(".state");
  const output = card.querySelector(".output");
  const buttons = card.querySelectorAll("button");

  async function send(body) {
    const started = performance.now();
    output.hidden = true;
    state.textContent = "Uploading";
    for (const button of buttons) button.disabled = true;
    try {
      const response = await fetch(form.action, { method: "POST", body });
      if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
      const answer = await response.json();
      const rows = answer.files.flatMap((file) => [
        ["name", file.name],
        ["size", `${file.size.toLocaleString("en")} bytes`],
        ["sha256", file.sha256],
      ]);
      rows.push(["wsgi.input", answer.input_on_disk ? "a file on disk" : "in memory"], ["thread", answer.thread]);
      output.replaceChildren(...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
      output.hidden = false;
      state.textContent = `${seconds(started)} s`;
    } catch (error) {
      state.textContent = error.message;
    } finally {
      for (const button of buttons) button.disabled = false;
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(new FormData(form));
  });
  form.elements.generate.addEventListener("click", () => {
    const body = new FormData();
    body.append("file", new Blob([new Uint8Array(2_000_000)]), "zeros.bin");
    send(body);
  });
}

function showRange(card) {
  const form = card.querySelector("form");
  const state = card.querySelector(".state");
  const output = card.querySelector(".output");

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    output.hidden = true;
    const range = `bytes=${form.elements.first.value}-${form.elements.last.value}`;
    try {
      const response = await fetch(card.dataset.url, { headers: { Range: range }, cache: "no-store" });
      state.textContent = `${response.status} ${response.statusText}`;
      const contentRange = response.headers.get("Content-Range") ?? "none";
      // A range that cannot be met is answered with a page of HTML: nothing to show here.
      const text = response.status === 206 ? (await response.text()).slice(0, 4096) : "";
      output.textContent = `Content-Range: ${contentRange}\n\n${text}`;
      output.hidden = false;
    } catch (error) {
      state.textContent = error.message;
    }
  });
}

showStream(document.getElementById("stream"));
showUpload(document.getElementById("upload"));
showRange(document.getElementById("download"));
