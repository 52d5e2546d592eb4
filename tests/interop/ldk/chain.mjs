// Feeds blocks to LDK in order, reorganisations included, and broadcasts what LDK wants published.
export const hex = (bytes) => Buffer.from(bytes).toString("hex");
export const unhex = (text) => Uint8Array.from(Buffer.from(text, "hex"));
export const reversed = (bytes) => Uint8Array.from(bytes).reverse();

export class Chain {
  // `listeners`: objects with connected(block, height) and disconnected(header, height).
  constructor(rpc, emit) {
    this.rpc = rpc;
    this.emit = emit;
    this.hold = false;
    this.known = []; // {height, hash, header}, oldest first
  }

  tip() {
    const hash = this.rpc.call("getbestblockhash");
    const header = this.rpc.call("getblockheader", hash, true);
    return { hash, height: header.height };
  }

  startAt(hash, height) {
    this.known = [{ hash, height, header: this.rpc.call("getblockheader", hash, false) }];
  }

  // Brings `listeners` to the tip. Returns whether anything moved.
  sync(listeners) {
    const best = this.rpc.call("getbestblockhash");
    if (best === this.known[this.known.length - 1].hash) return false;
    const missing = [];
    let hash = best;
    while (!this.known.some((block) => block.hash === hash)) {
      const info = this.rpc.call("getblockheader", hash, true);
      missing.push({ hash, height: info.height });
      if (info.previousblockhash === undefined) throw new Error("the chain has another genesis");
      hash = info.previousblockhash;
    }
    while (this.known[this.known.length - 1].hash !== hash) {
      const gone = this.known.pop();
      for (const listener of listeners) listener.disconnected(unhex(gone.header), gone.height);
    }
    for (const { hash: each, height } of missing.reverse()) {
      const raw = this.rpc.call("getblock", each, 0);
      for (const listener of listeners) listener.connected(unhex(raw), height);
      this.known.push({ hash: each, height, header: raw.slice(0, 160) });
    }
    this.emit("height", { height: this.known[this.known.length - 1].height });
    return true;
  }

  broadcast(txs) {
    const raw = txs.map(hex);
    let verdict;
    if (this.hold) verdict = "held";
    else
      try {
        verdict = raw.length > 1 ? this.rpc.call("submitpackage", raw) : this.rpc.call("sendrawtransaction", raw[0]);
      } catch (error) {
        verdict = String(error.message);
      }
    this.emit("broadcast", { txs: raw, verdict });
  }
}
