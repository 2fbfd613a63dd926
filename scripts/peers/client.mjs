// Plays a scenario with the official TypeScript SDK (`sdk`: "1" or "2") and prints the outcomes. Like `client.py`, which
// describes the form of scenario and transcript. `modules` is the directory of the packages.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const scenario = JSON.parse(process.argv[2]);
const require = createRequire(`${scenario.modules}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)).href);

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

/** Returns the SDK with the same functions for either version. */
async function sdk() {
  if (scenario.sdk === "1") {
    const base = "@modelcontextprotocol/sdk";
    const parts = ["client/index.js", "client/sse.js", "client/stdio.js", "client/streamableHttp.js", "types.js"];
    const all = Object.assign({}, ...(await Promise.all(parts.map((part) => load(`${base}/${part}`)))));
    const told = [all.ResourceUpdatedNotificationSchema, all.LoggingMessageNotificationSchema];
    return { ...all, changed: all.ToolListChangedNotificationSchema, told };
  }
  const all = { ...(await load("@modelcontextprotocol/client")), ...(await load("@modelcontextprotocol/client/stdio")) };
  return { ...all, changed: "notifications/tools/list_changed", told: ["notifications/resources/updated", "notifications/message"] };
}

const kit = await sdk();

function transport({ sse, http, headers, stdio }) {
  if (http) return new kit.StreamableHTTPClientTransport(new URL(http));
  if (!sse) return new kit.StdioClientTransport({ command: stdio[0], args: stdio.slice(1), stderr: "ignore" });
  // The request of the stream takes its fields from `requestInit` too, in both versions of the SDK.
  return new kit.SSEClientTransport(new URL(sse), { requestInit: { headers: headers ?? {} } });
}

const client = new kit.Client({ name: "peers", version: "1" }, { capabilities: {} });
const prefix = scenario.prefix ?? "";
let ring = () => {};
client.setNotificationHandler(kit.changed, () => ring());

/** Received notifications, and the waiting callers. */
const inbox = [];
let hear = () => {};
for (const schema of kit.told) {
  client.setNotificationHandler(schema, (message) => {
    inbox.push(message);
    hear();
  });
}

/** Returns all tools whose name begins with the prefix, without it, sorted by name as the gateway lists them. */
async function tools() {
  const all = [];
  let cursor;
  do {
    const page = await client.listTools(cursor === undefined ? undefined : { cursor });
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

/** Returns a list in the order of the gateway's, prompts without the prefix. */
function bare(result) {
  for (const [kind, key] of [["prompts", "name"], ["resources", "uri"], ["resourceTemplates", "uriTemplate"]]) {
    if (!result[kind]) continue;
    result[kind] = result[kind].map((item) => (kind === "prompts" ? { ...item, name: item.name.slice(prefix.length) } : item));
    result[kind].sort((one, other) => (one[key] < other[key] ? -1 : 1));
  }
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
  async told({ told }) {
    for (;;) {
      const heard = new Promise((resolve) => (hear = resolve));
      const place = inbox.findIndex((message) => message.method === told);
      if (place >= 0) return inbox.splice(place, 1)[0].params.uri ?? null;
      await heard;
    }
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
    say({ out: await play[kind](step) });
  }
  say({ done: true });
  await client.close();
  process.exit(0);
} catch (error) {
  say({ broken: String(error) });
  process.exit(1);
}
