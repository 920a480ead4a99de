// The official JavaScript client at work: node --input-type=module - DEED URL INDEX < run.mjs, in the folder where it
// is installed. What came out is one JSON object on stdout; what must have come out is judged by the test.

import { json } from "node:stream/consumers";
import { createGunzip } from "node:zlib";
import { Client } from "@elastic/elasticsearch";

const [deed, node, index] = process.argv.slice(2);
const client = new Client({ node, compression: true, maxRetries: 2, sniffOnStart: false });
const asAda = { headers: { "x-bespeak-user": "ada", "x-bespeak-session": "s" } };
const coat = { match: { text: "coat" } };
const ids = (answer) => answer.hits.hits.map((hit) => hit._id);

const deeds = {
  async info() {
    const { body, headers } = await client.info({}, { meta: true });
    return { tagline: body.tagline, product: headers["x-elastic-product"], alive: await client.ping() };
  },

  async search() {
    const own = await client.search({ index, query: coat, size: 100 });
    const { body, headers } = await client.search({ index, query: coat, size: 20 }, { ...asAda, meta: true });
    const child = await client.child(asAda).search({ index, q: "coat", df: "text", size: 20 });
    return { own: ids(own), ours: ids(body), told: headers["x-bespeak"], child: ids(child), total: body.hits.total };
  },

  async msearch() {
    const shoe = { match: { text: "shoe" } };
    const searches = [{}, { query: coat, size: 20 }, { index }, { query: shoe, size: 20 }, {}, { from: 20_000 }];
    const { body, headers } = await client.msearch({ index, searches }, { ...asAda, meta: true });
    const helper = client.helpers.msearch({ operations: 3, flushInterval: 50 }, asAda);
    const pages = await Promise.all(
      ["coat", "shoe", "hat", "coat"].map((text) => helper.search({ index }, { query: { match: { text } }, size: 20 })),
    );
    await helper.stop();
    return {
      statuses: body.responses.map((one) => one.status),
      told: headers["x-bespeak"],
      found: body.responses.slice(0, 2).map(ids),
      helped: pages.map(({ body }) => ids(body)),
    };
  },

  async bulk() {
    const datasource = Array.from({ length: 2500 }, (_, n) => ({ n: n % 7 === 0 ? `no number ${n}` : n, text: "ä\n€" }));
    const dropped = [];
    await client.indices.create({ index, mappings: { properties: { n: { type: "integer" } } } });
    const stats = await client.helpers.bulk({
      datasource,
      onDocument: (document) => [{ index: { _index: index } }, document],
      onDrop: ({ status }) => dropped.push(status),
      flushBytes: 20_000,
      concurrency: 4,
      refreshOnCompletion: index,
    });
    const found = [];
    for await (const document of client.helpers.scrollDocuments({ index, size: 400, query: { match_all: {} } })) {
      found.push(document.n);
    }
    const pages = client.helpers.scrollSearch({ index, size: 1000 });
    let scrolled = 0;
    for await (const page of pages) scrolled += page.documents.length;
    const { count } = await client.count({ index });
    const { total, failed, successful } = stats;
    return { total, failed, successful, dropped: dropped.length, count, scrolled, sum: found.reduce((a, b) => a + b, 0) };
  },

  async documents() {
    const id = "a/b ü;+";
    await client.index({ index, id, document: { n: 1 }, refresh: "wait_for" });
    const missing = await client.get({ index, id: "none" }).catch((error) => [error.name, error.statusCode, error.body.found]);
    const wrong = await client.search({ index, query: { nonsense: {} } }).catch((error) => [error.name, error.message]);
    const streamed = await client.search({ index }, { asStream: true, meta: true });
    const packed = streamed.headers["content-encoding"] === "gzip";
    const created = await client.create({ index, id, document: {} }).catch((error) => error.statusCode);
    return {
      there: [await client.exists({ index, id }), await client.exists({ index, id: "none" })],
      source: await client.getSource({ index, id }),
      streamed: (await json(packed ? streamed.body.pipe(createGunzip()) : streamed.body)).hits.total.value,
      updated: (await client.update({ index, id, doc: { n: 2 } })).result,
      missing,
      wrong,
      created,
    };
  },

  async down() {
    const error = await client.search({ index, query: coat }).catch((error) => error);
    return { name: error.name, status: error.statusCode, type: error.body.error.type, attempts: error.meta.meta.attempts };
  },
};

console.log(JSON.stringify(await deeds[deed]()));
await client.close();
