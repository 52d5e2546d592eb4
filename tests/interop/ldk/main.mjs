// One LDK node: configuration as a JSON argument, one JSON command a line on stdin, one JSON line on stdout for each
// answer ({"re": n, "ok"|"err": ...}) and each event ({"ev": name, ...}). The end of stdin ends the process.
import fs from "node:fs";
import readline from "node:readline";

const config = JSON.parse(process.argv[2]);
fs.mkdirSync(config.datadir, { recursive: true });
const log = fs.openSync(`${config.datadir}/ldk.log`, "a");
// LDK's loader and its panics print to the console, which here carries the protocol.
console.log = (...parts) => fs.writeSync(log, parts.join(" ") + "\n");
console.error = console.log;

const plain = (key, value) => {
  if (typeof value === "bigint") return Number(value);
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  return value;
};
const write = (line) => fs.writeSync(1, JSON.stringify(line, plain) + "\n");
const emit = (ev, fields = {}) => write({ ev, ...fields });
const die = (error) => {
  emit("panic", { error: String(error?.stack ?? error) });
  process.exit(1);
};
process.on("uncaughtException", die);
process.on("unhandledRejection", die);

const { LdkNode } = await import("./node.mjs");
const node = new LdkNode(config, emit, (text) => fs.writeSync(log, text + "\n"), die);
await node.start();
emit("ready", { node_id: node.nodeId(), port: config.port });

const lines = readline.createInterface({ input: process.stdin });
for await (const line of lines) {
  const command = JSON.parse(line);
  try {
    const ok = await node.command(command.cmd, command);
    node.pump(); // what the command caused is saved before it is answered
    write({ re: command.n, ok: ok ?? null });
  } catch (error) {
    if (error instanceof WebAssembly.RuntimeError) die(error);
    write({ re: command.n, err: String(error.message ?? error) });
  }
}
process.exit(0);
