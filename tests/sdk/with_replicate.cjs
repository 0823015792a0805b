// replicate through the proxy: only the base URL and a placeholder for the token are given.
"use strict";

const assert = require("node:assert/strict");
const Replicate = require("replicate");

const { SLUICEGATE_URL: URL, PLACEHOLDER_KEY: KEY } = process.env;
const MODEL = "acme/boats";
const VERSIONED = `${MODEL}:5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa`;
const BOAT = { prompt: "a paper boat on a pond" };
const ENDLESS = { ...BOAT, run_time_ms: 600_000 };

const replicate = new Replicate({ auth: KEY, baseUrl: `${URL}/v1` });

function checkOutput(output) {
  assert.equal(output.length, 1);
  assert.equal(output[0].url().host, "replicate.delivery");
}

const scenarios = {
  async answers() {
    // Held by the upstream (Prefer: wait, the default), and polled.
    checkOutput(await replicate.run(MODEL, { input: BOAT }));
    checkOutput(await replicate.run(VERSIONED, { input: BOAT }));
    const poll = { mode: "poll", interval: 100 };
    checkOutput(await replicate.run(MODEL, { input: BOAT, wait: poll }));
    checkOutput(await replicate.run(VERSIONED, { input: BOAT, wait: poll }));
    // The wait ends before the job does.
    const slow = { ...BOAT, run_time_ms: 1_500 };
    checkOutput(await replicate.run(MODEL, { input: slow, wait: { mode: "block", timeout: 1 } }));
    await assert.rejects(replicate.run(MODEL, { input: { ...BOAT, fail: true } }), /Prediction failed/);

    const prediction = await replicate.deployments.predictions.create("acme", "fleet", { input: ENDLESS });
    assert.equal(prediction.urls.get, `${URL}/v1/predictions/${prediction.id}`);
    assert.equal(prediction.urls.cancel, `${prediction.urls.get}/cancel`);
    assert.match((await replicate.predictions.get(prediction.id)).status, /^(starting|processing)$/);
    assert.equal((await replicate.predictions.cancel(prediction.id)).status, "canceled");
    assert.equal((await replicate.predictions.get(prediction.id)).status, "canceled");

    // Followed by their URLs alone.
    const followed = await replicate.predictions.create({ model: MODEL, input: ENDLESS });
    const headers = { authorization: `Bearer ${KEY}` };
    const cancelled = await fetch(followed.urls.cancel, { method: "POST", headers });
    assert.equal((await cancelled.json()).status, "canceled");

    // An abort cancels the job.
    const abort = new AbortController();
    const run = replicate.run(MODEL, { input: ENDLESS, wait: poll, signal: abort.signal }, () => abort.abort());
    await run.catch((error) => assert.equal(error.name, "AbortError"));
    for (const { id, status } of (await replicate.predictions.list()).results) {
      if (status === "starting" || status === "processing") await replicate.predictions.cancel(id);
    }
  },

  async refusals() {
    const stranger = new Replicate({ auth: "nobody", baseUrl: `${URL}/v1` });
    await assert.rejects(stranger.predictions.get("x"), (error) => error.response.status === 401);

    const prediction = await replicate.predictions.create({ model: MODEL, input: ENDLESS });
    const hasty = (url, init) => fetch(url, { ...init, headers: { ...init.headers, "Sluicegate-Max-Wait": "0s" } });
    const answer = await hasty(`${URL}/v1/models/${MODEL}/predictions`, {
      method: "POST",
      headers: { Authorization: `Bearer ${KEY}`, "Content-Type": "application/json" },
      body: JSON.stringify({ input: BOAT }),
    });
    assert.deepEqual([answer.status, (await answer.json()).code], [429, "job_limit"]);
    assert.equal((await replicate.predictions.cancel(prediction.id)).status, "canceled");
  },
};

scenarios[process.argv[2]]();
