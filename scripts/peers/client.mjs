// Plays a scenario with the official TypeScript SDK (`sdk`: "1" or "2") and prints the outcomes. Like `client.py`, which
// describes the form of scenario and transcript. `modules` is the directory of the packages. Without `mode`, both versions
// of the SDK begin with `initialize`.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const scenario = JSON.parse(process.argv[2]);
const require = createRequire(`${scenario.modules}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)).href);

const STEP_SECONDS = 60;
const MODERN = "2026-07-28";
const LEVEL = "io.modelcontextprotocol/logLevel";

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

/** Returns the SDK with the same functions for either version. */
async function sdk() {
  if (scenario.sdk === "1") {
    const base = "@modelcontextprotocol/sdk";
    const parts = ["client/index.js", "client/sse.js", "client/stdio.js", "client/streamableHttp.js", "types.js"];
    const all = Object.assign({}, ...(await Promise.all(parts.map((part) => load(`${base}/${part}`)))));
    const changes = ["Tool", "Prompt", "Resource"].map((kind) => all[`${kind}ListChangedNotificationSchema`]);
    const told = [...changes, all.ResourceUpdatedNotificationSchema, all.LoggingMessageNotificationSchema];
    const asked = [all.ElicitRequestSchema, all.CreateMessageRequestSchema, all.ListRootsRequestSchema];
    return { ...all, told, asked };
  }
  const all = { ...(await load("@modelcontextprotocol/client")), ...(await load("@modelcontextprotocol/client/stdio")) };
  const changes = ["tools", "prompts", "resources"].map((kind) => `notifications/${kind}/list_changed`);
  const told = [...changes, "notifications/resources/updated", "notifications/message"];
  return { ...all, told, asked: ["elicitation/create", "sampling/createMessage", "roots/list"] };
}

const kit = await sdk();

function transport({ sse, http, headers, stdio }) {
  if (http) return new kit.StreamableHTTPClientTransport(new URL(http));
  if (!sse) return new kit.StdioClientTransport({ command: stdio[0], args: stdio.slice(1), stderr: "ignore" });
  // The request of the stream takes its fields from `requestInit` too, in both versions of the SDK.
  return new kit.SSEClientTransport(new URL(sse), { requestInit: { headers: headers ?? {} } });
}

const mode = scenario.target.mode === MODERN ? { pin: MODERN } : scenario.target.mode;
const capabilities = scenario.user ? { elicitation: {}, sampling: {}, roots: {} } : {};
const client = new kit.Client({ name: "peers", version: "1" }, { capabilities, ...(mode && { versionNegotiation: { mode } }) });
const prefix = scenario.prefix ?? "";
let ring = () => {};

/** Received notifications, and the waiting callers. */
const inbox = [];
let hear = () => {};
for (const schema of kit.told) {
  client.setNotificationHandler(schema, (message) => {
    if (message.method === "notifications/tools/list_changed") ring();
    inbox.push(message);
    hear();
  });
}

/** Waits for a notification, and takes it from the inbox. Returns its parameters. */
async function notification(wanted) {
  for (;;) {
    const heard = new Promise((resolve) => (hear = resolve));
    const place = inbox.findIndex((message) => message.method === wanted);
    if (place >= 0) return inbox.splice(place, 1)[0].params ?? {};
    await heard;
  }
}

/** Returns a value for a field of a form: its default, the first choice, or one by its type. */
function value(name, rule) {
  if (rule.default !== undefined) return rule.default;
  if (rule.type === "array") return [value(name, { anyOf: rule.items.anyOf, enum: rule.items.enum })];
  const choice = rule.oneOf ?? rule.anyOf;
  if (choice) return choice[0].const;
  if (rule.enum) return rule.enum[0];
  const formats = { email: "peer@example.org", uri: "https://example.org/", date: MODERN };
  return { boolean: true, integer: 7, number: 1.5 }[rule.type] ?? formats[rule.format] ?? `${name} of ${scenario.user}`;
}

/** The answers of the person and the model behind the client, by method. */
const answers = {
  "elicitation/create": ({ requestedSchema }) => {
    const fields = Object.entries(requestedSchema.properties).map(([name, rule]) => [name, value(name, rule)]);
    return { action: "accept", content: Object.fromEntries(fields) };
  },
  "sampling/createMessage": ({ messages }) => {
    const content = { type: "text", text: `${scenario.user} read: ${messages.at(-1).content.text}` };
    return { role: "assistant", content, model: "peer", stopReason: "endTurn" };
  },
  "roots/list": () => ({ roots: [{ uri: "file:///peers", name: scenario.user }] }),
};

/** Questions so far, without what differs between the eras of the protocol. */
const questions = [];
for (const schema of scenario.user ? kit.asked : []) {
  client.setRequestHandler(schema, ({ method, params }) => {
    const { _meta, task, ...kept } = params ?? {};
    if (kept.mode === "form") delete kept.mode;
    questions.push({ method, params: kept });
    return answers[method](params);
  });
}

const modern = () => client.getNegotiatedProtocolVersion?.() === MODERN;
let level;
const listening = [];

/** Returns all tools whose name begins with the prefix, without it, sorted by name as the gateway lists them. */
async function tools() {
  const all = [];
  let cursor;
  do {
    const page = await client.listTools(cursor === undefined ? undefined : { cursor }, { cacheMode: "refresh" });
    all.push(...page.tools);
    cursor = page.nextCursor;
  } while (cursor !== undefined);
  const mine = all.filter((tool) => tool.name.startsWith(prefix));
  const bare = mine.map((tool) => ({ ...tool, name: tool.name.slice(prefix.length) }));
  return bare.sort((one, other) => (one.name < other.name ? -1 : 1));
}

/** Returns an error response, or the SDK's own error. */
function describe(error) {
  if (typeof error?.code !== "number") return { sdk: String(error) };
  const { code, message, data } = error;
  return data === undefined ? { code, message } : { code, message, data };
}

async function call(step, more = {}) {
  const progress = [];
  const options = { ...more };
  if (step.progress) {
    options.onprogress = ({ progress: done, total, message }) => {
      progress.push([done, total ?? null, message ?? null]);
      step.reached?.();
    };
  }
  const params = { name: prefix + step.call, arguments: step.args ?? {} };
  if (level && modern()) params._meta = { [LEVEL]: level };
  let out;
  try {
    out = { result: await (scenario.sdk === "1" ? client.callTool(params, undefined, options) : client.callTool(params, options)) };
  } catch (error) {
    out = { error: describe(error) };
  }
  return progress.length ? { ...out, progress } : out;
}

/** Returns the reference to complete, under its exposed name. */
const reference = (ref) => (ref.type === "ref/prompt" ? { ...ref, name: prefix + ref.name } : ref);

/** Sends any request other than a call, by the SDK's method for it. */
const ways = {
  "completion/complete": ({ ref, argument }) => client.complete({ ref: reference(ref), argument }),
  "logging/setLevel": ({ level }) => client.setLoggingLevel(level),
  ping: () => client.ping(),
  "prompts/get": (params) => client.getPrompt({ ...params, name: prefix + params.name }),
  "prompts/list": () => client.listPrompts(),
  "resources/list": () => client.listResources(),
  "resources/read": (params) => client.readResource(params),
  "resources/subscribe": (params) => client.subscribeResource(params),
  "resources/templates/list": () => client.listResourceTemplates(),
  "resources/unsubscribe": (params) => client.unsubscribeResource(params),
};

/** Returns a list in the order of the gateway's, prompts without the prefix; other servers' prompts are left out. */
function bare(result) {
  for (const [kind, key] of [["prompts", "name"], ["resources", "uri"], ["resourceTemplates", "uriTemplate"]]) {
    if (!result[kind]) continue;
    result[kind].sort((one, other) => (one[key] < other[key] ? -1 : 1));
  }
  const mine = result.prompts?.filter((item) => item.name.startsWith(prefix));
  if (mine) result.prompts = mine.map((item) => ({ ...item, name: item.name.slice(prefix.length) }));
  return result;
}

const play = {
  async ask({ ask, params }) {
    try {
      return bare(await ways[ask](params ?? {}));
    } catch (error) {
      return { error: describe(error) };
    }
  },
  version: () => client.getNegotiatedProtocolVersion?.() ?? null,
  discover: () => client.discover(),
  told: async ({ told }) => (await notification(told)).uri ?? null,
  async logs(step) {
    const all = [];
    while (all.length < step.logs) all.push(await notification("notifications/message"));
    return all;
  },
  async silence(step) {
    await new Promise((resolve) => setTimeout(resolve, 300));
    return inbox.splice(0).filter((message) => message.method === step.silence).length;
  },
  asked() {
    const sorted = (item) => {
      if (Array.isArray(item)) return item.map(sorted);
      if (typeof item !== "object" || item === null) return item;
      return Object.fromEntries(Object.keys(item).sort().map((key) => [key, sorted(item[key])]));
    };
    const unique = new Set(questions.splice(0).map((question) => JSON.stringify(sorted(question))));
    return [...unique].sort().map((text) => JSON.parse(text));
  },
  async level(step) {
    level = step.level;
    if (!modern()) await client.setLoggingLevel(level);
    return null;
  },
  async listen({ listen: { kinds = [], uris = [] } }) {
    if (!modern()) {
      for (const uri of uris) await client.subscribeResource({ uri });
      return null;
    }
    const filter = Object.fromEntries(kinds.map((kind) => [`${kind}ListChanged`, true]));
    if (uris.length) filter.resourceSubscriptions = uris;
    listening.push(await client.listen(filter));
    return listening.at(-1).honoredFilter;
  },
  async unlisten({ unlisten }) {
    for (const uri of modern() ? [] : unlisten) await client.unsubscribeResource({ uri });
    for (const open of listening.splice(0)) await open.close();
    return null;
  },
  async welcome() {
    const version = client.getNegotiatedProtocolVersion?.() ?? null;
    const said = [client.getServerVersion(), client.getServerCapabilities(), client.getInstructions() ?? null];
    return { version, serverInfo: said[0], capabilities: said[1], instructions: said[2] };
  },
  async await_tool(step) {
    for (;;) {
      const changed = new Promise((resolve) => (ring = resolve));
      if ((await tools()).some((tool) => tool.name === step.await_tool)) return null;
      await changed;
    }
  },
  list: tools,
  call: (step) => call(step),
  parallel: (step) => Promise.all(step.parallel.map((one) => call(one))),
  async cancel(step) {
    const abort = new AbortController();
    let reached;
    const going = new Promise((resolve) => (reached = resolve));
    const task = call({ ...step.cancel, progress: true, reached }, { signal: abort.signal });
    await going;
    abort.abort("no longer wanted");
    await task;
    return null;
  },
  async until(step) {
    for (;;) {
      const out = await call({ call: step.until, args: step.args });
      if (out.result?.content?.[0]?.text === step.text) return null;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  },
};

try {
  await client.connect(transport(scenario.target));
  say({ ready: { version: client.getNegotiatedProtocolVersion?.() ?? null } });
  for (const step of scenario.steps) {
    const kind = Object.keys(play).find((name) => name in step);
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`${kind} took more than ${STEP_SECONDS} s`)), STEP_SECONDS * 1000);
    });
    say({ out: await Promise.race([play[kind](step), late]) });
    clearTimeout(timer);
  }
  say({ done: true });
  await client.close();
  process.exit(0);
} catch (error) {
  say({ broken: String(error) });
  process.exit(1);
}
