// The official `ollama` package for JavaScript: `node with_ollama.mjs <act> <url>` performs one act against a server.
// It ends with 0 if the client behaved as promised.  `webSearch` and `webFetch` are left out: they go to ollama.com.

import assert from "node:assert/strict";

import { Ollama } from "ollama";

const ANSWER =
  " alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa quebec romeo " +
  "sierra tango uniform victor whiskey xray yankee zulu";
const refused = (what) => `"tiny-embed" does not support ${what}`;
const messages = [{ role: "user", content: "hi" }];

const gathered = async (stream) => {
  const parts = [];
  for await (const part of await stream) parts.push(part);
  return parts;
};

async function calls(url) {
  const ollama = new Ollama({ host: url });

  let whole = await ollama.chat({ model: "tiny-a", messages });
  assert.deepEqual([whole.message.content, whole.done, whole.done_reason], [ANSWER, true, "stop"]);
  let parts = await gathered(ollama.chat({ model: "tiny-a", messages, stream: true }));
  assert.equal(parts.map((part) => part.message.content).join(""), ANSWER);
  assert.equal(parts.length, 27);
  whole = await ollama.generate({ model: "tiny-a", prompt: "hi", options: { num_predict: 3 } });
  assert.deepEqual([whole.response, whole.done_reason], [" alpha bravo charlie", "length"]);
  parts = await gathered(ollama.generate({ model: "tiny-a", prompt: "hi", stream: true }));
  assert.equal(parts.map((part) => part.response).join(""), ANSWER);
  const embedded = await ollama.embed({ model: "tiny-embed", input: ["one", "two"] });
  assert.deepEqual(embedded.embeddings.map((vector) => vector.length), [64, 64]);
  assert.equal((await ollama.embeddings({ model: "tiny-embed", prompt: "one" })).embedding.length, 64);

  assert((await ollama.list()).models.some((model) => model.name === "tiny-a:latest"));
  assert.deepEqual((await ollama.ps()).models.map((model) => model.name), ["tiny-embed:latest"]);
  assert.equal((await ollama.show({ model: "tiny-a" })).details.family, "llama");
  assert.match((await ollama.version()).version, /^\d+\.\d+\.\d+$/);

  parts = await gathered(ollama.pull({ model: "tiny-a", stream: true }));
  assert.deepEqual([parts.at(0).status, parts.at(-1).status], ["pulling manifest", "success"]);
  assert.equal((await ollama.push({ model: "tiny-a" })).status, "success");
  assert.equal((await ollama.create({ model: "mine", from: "tiny-a" })).status, "success");
  assert.equal((await ollama.copy({ source: "mine", destination: "ours" })).status, "success");
  assert((await ollama.chat({ model: "ours", messages })).done); // known at once, not at the next poll
  for (const model of ["mine", "ours"]) assert.equal((await ollama.delete({ model })).status, "success");

  for (const call of [
    () => ollama.chat({ model: "nope", messages }),
    () => ollama.chat({ model: "nope", messages, stream: true }),
    () => ollama.generate({ model: "nope", prompt: "hi" }),
    () => ollama.show({ model: "nope" }),
    () => ollama.embed({ model: "nope", input: "hi" }),
  ])
    await assert.rejects(call, { name: "ResponseError", status_code: 404, message: /not found/ });
  await assert.rejects(() => ollama.chat({ model: "tiny-a", messages, think: true }), { status_code: 400 });
}

async function token(url) {
  const ollama = new Ollama({ host: url, headers: { Authorization: "Bearer secret" } });
  assert.equal((await ollama.chat({ model: "tiny-a", messages })).message.content, ANSWER);
  await assert.rejects(() => new Ollama({ host: url }).list(), { status_code: 401 });
}

// Waits on held lines; the answers are as ever.
async function held(url) {
  const ollama = new Ollama({ host: url });
  const [chat, chatParts, generated, generatedParts, embedded] = await Promise.all([
    ollama.chat({ model: "tiny-a", messages }),
    gathered(ollama.chat({ model: "tiny-a", messages, stream: true })),
    ollama.generate({ model: "tiny-a", prompt: "hi" }),
    gathered(ollama.generate({ model: "tiny-a", prompt: "hi", stream: true })),
    ollama.embed({ model: "tiny-embed", input: "hi" }),
  ]);
  assert.equal(chat.message.content, ANSWER);
  assert.equal(chatParts.map((part) => part.message.content).join(""), ANSWER);
  assert.equal(generated.response, ANSWER);
  assert.equal(generatedParts.map((part) => part.response).join(""), ANSWER);
  assert.equal(embedded.embeddings[0].length, 64);
}

// Waits on held lines for failures.  A stream throws; for a plain call the client looks at the status alone, and
// returns the error's document, which has nothing of an answer in it.
async function failing(url) {
  const ollama = new Ollama({ host: url });
  const chat = { model: "tiny-embed", messages };
  const generate = { model: "tiny-embed", prompt: "hi" };
  const embed = { model: "tiny-embed", input: "hi", keep_alive: "soon" };
  await Promise.all([
    assert.rejects(() => gathered(ollama.chat({ ...chat, stream: true })), { message: refused("chat") }),
    assert.rejects(() => gathered(ollama.generate({ ...generate, stream: true })), { message: refused("generate") }),
    ollama.chat(chat).then((answer) => assert.deepEqual(answer, { error: refused("chat") })),
    ollama.generate(generate).then((answer) => assert.deepEqual(answer, { error: refused("generate") })),
    ollama.embed(embed).then((answer) => assert.deepEqual(Object.keys(answer), ["error"])),
  ]);
}

// Aborts a stream after its first part, says so, and lives on: it is not its end that closes the connection.
async function abort(url) {
  const ollama = new Ollama({ host: url });
  const stream = await ollama.chat({ model: "slow", messages, stream: true });
  await assert.rejects(
    async () => {
      for await (const part of stream) {
        assert.equal(part.message.content, " one");
        ollama.abort();
      }
    },
    { name: "AbortError" },
  );
  console.log("aborted");
  setTimeout(() => {}, 60_000);
}

const [act, url] = process.argv.slice(2);
await { calls, token, held, failing, abort }[act](url);
