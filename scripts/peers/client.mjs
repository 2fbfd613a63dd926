// Plays a scenario with the official TypeScript SDK (`sdk`: "1" or "2") and prints what came of it. The twin of `client.py`,
// where the form of scenario and transcript is written down. `modules` says where the packages are.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const scenario = JSON.parse(process.argv[2]);
const require = createRequire(`${scenario.modules}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)).href);

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

/** The SDK in one shape, whichever line it is. */
async function sdk() {
  if (scenario.sdk === "1") {
    const base = "@modelcontextprotocol/sdk";
    const [{ Client }, { SSEClientTransport }, { StdioClientTransport }, types] = await Promise.all(
      ["client/index.js", "client/sse.js", "client/stdio.js", "types.js"].map((part) => load(`${base}/${part}`)),
    );
    return { Client, SSEClientTransport, StdioClientTransport, changed: types.ToolListChangedNotificationSchema };
  }
  const { Client, SSEClientTransport } = await load("@modelcontextprotocol/client");
  const { StdioClientTransport } = await load("@modelcontextprotocol/client/stdio");
  return { Client, SSEClientTransport, StdioClientTransport, changed: "notifications/tools/list_changed" };
}

const kit = await sdk();

function transport({ sse, headers, stdio }) {
  if (!sse) return new kit.StdioClientTransport({ command: stdio[0], args: stdio.slice(1), stderr: "ignore" });
  // The stream's request takes its fields from `requestInit` too, in both lines of the SDK.
  return new kit.SSEClientTransport(new URL(sse), { requestInit: { headers: headers ?? {} } });
}

const client = new kit.Client({ name: "peers", version: "1" }, { capabilities: {} });
const prefix = scenario.prefix ?? "";
let ring = () => {};
client.setNotificationHandler(kit.changed, () => ring());

/** All tools whose name begins with the prefix, which is taken off; by name, as the gateway lists them. */
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

/** An error answer, or what the SDK itself complains of. */
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

const play = {
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
