// bitcoind's JSON-RPC, synchronously: LDK's callbacks must answer at once, and Node.js has only asynchronous HTTP.
import { MessageChannel, Worker, receiveMessageOnPort } from "node:worker_threads";

export class Rpc {
  constructor(url, auth) {
    const channel = new MessageChannel();
    const flag = new SharedArrayBuffer(4);
    this.signal = new Int32Array(flag);
    this.port = channel.port1;
    this.next = 0;
    this.worker = new Worker(new URL("./rpc_worker.mjs", import.meta.url), {
      workerData: { url, auth, flag, port: channel.port2 },
      transferList: [channel.port2],
    });
    this.worker.unref();
    this.port.unref();
  }

  // The result, or an Error that carries bitcoind's code.
  call(method, ...params) {
    this.next += 1;
    Atomics.store(this.signal, 0, 0);
    this.port.postMessage(JSON.stringify({ jsonrpc: "1.0", id: this.next, method, params }));
    Atomics.wait(this.signal, 0, 0, 30000);
    const message = receiveMessageOnPort(this.port);
    if (message === undefined) throw new Error(`${method}: no answer from layer 1`);
    const { status, body } = message.message;
    let answer;
    try {
      answer = JSON.parse(body);
    } catch {
      throw new Error(`${method}: HTTP ${status}: ${body.slice(0, 200)}`);
    }
    if (answer.error) {
      const error = new Error(`${method}: ${answer.error.message}`);
      error.code = answer.error.code;
      throw error;
    }
    return answer.result;
  }
}
