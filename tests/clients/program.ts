// Uses every request through generated clients, and prints what it got, as JSON.
//
// Beside it are the types "events" and "domains", one of each service's document; with the standalone both are of the
// same.

import createClient from "openapi-fetch";
import type { components, paths as Domains } from "./domains.js";
import type { paths as Events } from "./events.js";

type Report = components["schemas"]["DomainReport"];
type Problem = components["schemas"]["Problem"];
type Status = components["schemas"]["Status"];

/** What this program reads of the answers that a request can have. */
type Read = "application/json" | "application/problem+json" | "text/plain; charset=utf-8";

declare const process: { env: Record<string, string> };

function client<Paths extends {}>(name: string, token = process.env[`${name}_TOKEN`]) {
  return createClient<Paths, Read>({
    baseUrl: process.env[`${name}_URL`] ?? "",
    headers: { authorization: `Bearer ${token}` },
  });
}

const sender = client<Events>("EVENTS");
const reader = client<Domains>("DOMAINS");
const stranger = client<Domains>("DOMAINS", "nobody's");

/** What there must be, or what there is instead. */
function some<T>(value: T | undefined, instead: unknown): T {
  if (value === undefined) throw new Error(JSON.stringify(instead));
  return value;
}

/** A report without its moment, of which only the type is known. */
function short({ domain, status, delivered, bounced, since }: Report) {
  if (since !== null && Number.isNaN(Date.parse(since))) throw new Error(since);
  return [domain, status, delivered, bounced, since !== null];
}

function problem(found: Problem | undefined) {
  const { type, status, title } = some(found, "no problem");
  return [type, status, title];
}

function put(domain: string, key: string) {
  const params = { path: { domain, outcome: "delivered" as const }, header: { "Idempotency-Key": key } };
  return sender.PUT("/events/{domain}/{outcome}", { params });
}

async function bulk() {
  const { data, error } = await sender.POST("/events", {
    params: { header: { "Idempotency-Key": "bulk" } },
    body: [
      { domain: "a.example", event: "delivered", count: 1000 },
      { domain: "b.example", event: "bounced", id: "b" },
      { domain: "localhost", event: "delivered" },
      { domain: "c.example", event: "delivered", count: 5 },
    ],
  });
  const { accepted, rejected } = some(data, error);
  return [accepted, rejected.map(({ index, type }) => [index, type])];
}

function ask(domain: string, etag?: string) {
  const header = etag === undefined ? {} : { "If-None-Match": etag };
  return reader.GET("/domains/{domain}", { params: { path: { domain }, header } });
}

/** The first answer with so many delivered events. The replica is a moment behind. */
async function eventually(domain: string, delivered: number) {
  const end = Date.now() + 60_000;
  for (;;) {
    const { data, error, response } = await ask(domain);
    const etag = response.headers.get("etag") ?? "none";
    if (data?.delivered === delivered) return { data, etag };
    if (Date.now() > end) throw new Error(JSON.stringify(data ?? error));
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Every page of a list with one domain on each. */
async function pages(status?: Status) {
  const found = [];
  let after: string | null | undefined;
  while (after !== null) {
    const query = { limit: 1, ...(status && { status }), ...(after && { after }) };
    const { data, error } = await reader.GET("/domains", { params: { query } });
    const page: components["schemas"]["ListAnswer"] = some(data, error);
    found.push(...page.domains.map(short));
    after = page.next;
  }
  return found;
}

/** So many changes from the beginning, a page for each. */
async function changes(number: number) {
  const found: Report[] = [];
  let position: string | undefined;
  while (found.length < number) {
    const query = { limit: 1, wait: 60, ...(position && { since: position }) };
    const { data, error } = await reader.GET("/changes", { params: { query } });
    const page: components["schemas"]["ChangesAnswer"] = some(data, error);
    found.push(...page.changes);
    position = page.position;
  }
  return found.sort((a, b) => (a.domain < b.domain ? -1 : 1)).map(short);
}

async function names() {
  const { data, error } = await reader.POST("/domains/lookup", { body: ["A.example.", "localhost"] });
  const [known, unknown] = some(data, error).domains;
  if (!known || "name" in known || !unknown || !("name" in unknown)) throw new Error(JSON.stringify(data));
  return [short(known), unknown.name, problem(unknown.problem)];
}

async function totals() {
  const { data, error } = await reader.GET("/totals");
  const { domains, events, recent, minutes } = some(data, error);
  const delivered = minutes.reduce((sum, minute) => sum + minute.delivered, 0);
  if (delivered !== events.delivered) throw new Error(JSON.stringify(data));
  return [
    [domains["catch-all"], domains["not catch-all"], domains.unknown],
    [events.delivered, events.bounced],
    recent.hour,
  ];
}

async function main() {
  const first = await put("a.example", "a");
  const second = await put("A.Example.", "a");
  const answer = await bulk();
  const { data, etag } = await eventually("a.example", 1001);
  const [path, map] = [{ domain: "a.example" }, { status: "catch-all" as const }];
  const refused = [
    await put("localhost", "d"),
    await ask("localhost"),
    await reader.GET("/changes", { params: { query: { since: "nowhere" } } }),
    await stranger.GET("/domains/{domain}", { params: { path } }),
  ];
  console.log(
    JSON.stringify({
      put: [first.response.status, second.response.status],
      bulk: answer,
      domain: short(data),
      unchanged: (await ask("a.example", etag)).response.status === 304,
      list: await pages(),
      bounced: await pages("not catch-all"),
      names: await names(),
      map: (await reader.GET("/maps/rspamd/{status}", { params: { path: map }, parseAs: "text" })).data,
      totals: await totals(),
      changes: await changes(2),
      problems: refused.map(({ error }) => problem(error)),
      document: (await reader.GET("/openapi.json")).data?.["openapi"],
    }),
  );
}

await main();
