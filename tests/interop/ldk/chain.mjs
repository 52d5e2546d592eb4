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
    const { height } = this.rpc.call("getblockheader", best, true);
    const missing = [];
    let hash = best;
    while (!this.known.some((block) => block.hash === hash)) {
      const raw = this.rpc.call("getblock", hash, 0);
      missing.push({ hash, height: height - missing.length, raw });
      if (missing.length > height) throw new Error("the chain has another genesis");
      hash = hex(reversed(unhex(raw.slice(8, 72)))); // a header has its parent's hash after four bytes of version
    }
    while (this.known[this.known.length - 1].hash !== hash) {
      const gone = this.known.pop();
      for (const listener of listeners) listener.disconnected(unhex(gone.header), gone.height);
    }
    for (const block of missing.reverse()) {
      for (const listener of listeners) listener.connected(unhex(block.raw), block.height);
      this.known.push({ hash: block.hash, height: block.height, header: block.raw.slice(0, 160) });
    }
    this.emit("height", { height });
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
