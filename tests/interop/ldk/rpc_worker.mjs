// Keeps one HTTP connection to layer 1; the main thread waits for each answer (see rpc.mjs).
import http from "node:http";
import { parentPort, workerData } from "node:worker_threads";

const { url, auth, flag, port } = workerData;
const target = new URL(url);
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
const signal = new Int32Array(flag);

port.on("message", (body) => {
  const answer = (result) => {
    port.postMessage(result);
    Atomics.store(signal, 0, 1);
    Atomics.notify(signal, 0);
  };
  const headers = {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(body),
    authorization: "Basic " + Buffer.from(auth).toString("base64"),
  };
  const request = http.request(
    { hostname: target.hostname, port: target.port, path: "/", method: "POST", agent, headers },
    (response) => {
      const chunks = [];
      response.on("data", (chunk) => chunks.push(chunk));
      response.on("end", () => answer({ status: response.statusCode, body: Buffer.concat(chunks).toString() }));
    },
  );
  request.on("error", (error) => answer({ status: 0, body: String(error) }));
  request.end(body);
});
parentPort.postMessage("ready");
