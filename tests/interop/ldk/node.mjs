// An LDK node over TCP, on the chain of a bitcoind-like layer 1.
import fs from "node:fs";
import { createRequire } from "node:module";
import * as ldk from "#lightning";
import { Net } from "./net.mjs";
import { Chain, hex, reversed, unhex } from "./chain.mjs";
import { Rpc } from "./rpc.mjs";
import { handleEvent } from "./events.mjs";
import { raiseGhost } from "./ghost.mjs";
import { COMMANDS } from "./commands.mjs";
import { makeBumper } from "./wallet.mjs";

const require = createRequire(import.meta.url);
const SAVED = /^(manager|monitor-[0-9a-f]{64}-\d+)\.(\d+)$/;
const ONION_ERROR = /^Onion Error\[from ([0-9a-f]{66}): (\w+)\((0x[0-9a-f]+)\)/;
export const optional = (option) => ("some" in option ? option.some : null);

export function must(result, what) {
  if (result.is_ok()) return result.res;
  const error = result.err;
  const name = error?.constructor?.name ?? "";
  throw new Error(`${what}: ${name} ${typeof error === "object" ? (error?.err ?? "") : error}`);
}

export class LdkNode {
  constructor(config, emit, logLine, die) {
    this.config = config;
    this.emit = emit;
    this.logLine = logLine;
    this.die = die;
    this.queue = [];
    this.saved = new Map();
    this.monitorPairs = [];
    this.ghost = null;
    this.auto = { accept: true, claim: true, fund: true, bump: true, ...config.auto };
    this.fees = { normal: 253, maximum: 10000 };
    this.rpc = new Rpc(config.rpc_url, config.rpc_auth);
    this.chain = new Chain(this.rpc, emit);
  }

  // Every callback runs inside WebAssembly frames: an exception there ends the instance.
  guard(action) {
    return (...args) => {
      try {
        return action(...args);
      } catch (error) {
        return this.die(error);
      }
    };
  }

  makePorts() {
    const target = ldk.ConfirmationTarget;
    this.feeEstimator = ldk.FeeEstimator.new_impl({
      get_est_sat_per_1000_weight: this.guard((kind) => {
        if (kind === target.LDKConfirmationTarget_MaximumFeeEstimate) return this.fees.maximum;
        const lowest = [
          target.LDKConfirmationTarget_MinAllowedAnchorChannelRemoteFee,
          target.LDKConfirmationTarget_MinAllowedNonAnchorChannelRemoteFee,
        ];
        return lowest.includes(kind) ? 253 : this.fees.normal;
      }),
    });
    this.logger = ldk.Logger.new_impl({
      log: this.guard((record) => {
        if (record.get_level() < ldk.Level.LDKLevel_Debug) return;
        const text = record.get_args();
        this.logLine(`${record.get_module_path()}: ${text}`);
        // The code of a failure is told by no event in this build.
        const told = ONION_ERROR.exec(text);
        if (told) this.emit("onion_error", { from: told[1], name: told[2], code: Number(told[3]) });
      }),
    });
    this.broadcaster = ldk.BroadcasterInterface.new_impl({
      broadcast_transactions: this.guard((txs) => this.chain.broadcast(txs)),
    });
    const persist = this.guard((outpoint, monitor) => {
      const name = `monitor-${hex(outpoint.get_txid())}-${outpoint.get_index()}`;
      const bytes = monitor.write();
      this.save(name, bytes);
      if (this.config.keep_versions) fs.writeFileSync(this.versionFile(name, monitor.get_latest_update_id()), bytes);
      // A manager older than its monitors closes the channel at the next start: keep the gap short.
      setImmediate(this.guard(() => this.manager && this.persistManager()));
      return ldk.ChannelMonitorUpdateStatus.LDKChannelMonitorUpdateStatus_Completed;
    });
    this.persister = ldk.Persist.new_impl({
      persist_new_channel: (outpoint, monitor) => persist(outpoint, monitor),
      update_persisted_channel: (outpoint, _update, monitor) => persist(outpoint, monitor),
      archive_persisted_channel: () => undefined,
    });
  }

  // Each time under a new number, then the last one goes: to replace a file costs the disk far more.
  save(name, bytes) {
    const path = `${this.config.datadir}/${name}`;
    const last = this.saved.get(name) ?? 0;
    fs.writeFileSync(`${path}.tmp`, bytes);
    fs.renameSync(`${path}.tmp`, `${path}.${last + 1}`);
    this.saved.set(name, last + 1);
    fs.rmSync(`${path}.${last}`, { force: true });
  }

  load(name) {
    return fs.readFileSync(`${this.config.datadir}/${name}.${this.saved.get(name)}`);
  }

  // What earlier processes saved: the newest number of each name.
  findSaved() {
    for (const file of fs.readdirSync(this.config.datadir)) {
      const [, name, number] = SAVED.exec(file) ?? [];
      if (name) this.saved.set(name, Math.max(Number(number), this.saved.get(name) ?? 0));
    }
  }

  makeUserConfig(overrides = {}) {
    const wishes = { anchors: true, announce: false, minimum_depth: 1, scid_privacy: false, ...this.config.channels, ...overrides };
    const config = ldk.UserConfig.constructor_default();
    const handshake = config.get_channel_handshake_config();
    handshake.set_minimum_depth(wishes.minimum_depth);
    handshake.set_max_inbound_htlc_value_in_flight_percent_of_channel(100);
    handshake.set_announce_for_forwarding(wishes.announce);
    handshake.set_negotiate_anchors_zero_fee_htlc_tx(wishes.anchors);
    handshake.set_negotiate_scid_privacy(wishes.scid_privacy);
    handshake.set_our_max_accepted_htlcs(483);
    const limits = config.get_channel_handshake_limits();
    limits.set_force_announced_channel_preference(false);
    limits.set_trust_own_funding_0conf(true);
    config.set_manually_accept_inbound_channels(true);
    config.set_accept_forwards_to_priv_channels(true);
    return config;
  }

  async start() {
    const wasm = require.resolve("lightningdevkit/package.json").replace("package.json", "liblightningjs.wasm");
    await ldk.initializeWasmFromBinary(fs.readFileSync(wasm));
    this.makePorts();
    const now = Date.now();
    this.chainMonitor = ldk.ChainMonitor.constructor_new(
      ldk.Option_FilterZ.constructor_none(), this.broadcaster, this.logger, this.feeEstimator, this.persister,
    );
    this.keys = ldk.KeysManager.constructor_new(unhex(this.config.seed), BigInt(now), process.pid);
    this.entropy = this.keys.as_EntropySource();
    this.nodeSigner = this.keys.as_NodeSigner();
    this.signerProvider = this.keys.as_SignerProvider();
    this.bumper = makeBumper(this);
    this.graph = ldk.NetworkGraph.constructor_new(ldk.Network.LDKNetwork_Regtest, this.logger);
    this.scorer = ldk.ProbabilisticScorer.constructor_new(
      ldk.ProbabilisticScoringDecayParameters.constructor_default(), this.graph, this.logger,
    );
    this.score = ldk.MultiThreadedLockableScore.constructor_new(this.scorer.as_Score());
    this.router = ldk.DefaultRouter.constructor_new(
      this.graph, this.logger, this.entropy, this.score.as_LockableScore(),
      ldk.ProbabilisticScoringFeeParameters.constructor_default(),
    );
    this.messageRouter = ldk.DefaultMessageRouter.constructor_new(this.graph, this.entropy);
    this.userConfig = this.makeUserConfig();
    this.findSaved();
    if (this.saved.has("manager")) this.restore();
    else this.create();
    this.connectNetwork();
    this.handler = ldk.EventHandler.new_impl({
      handle_event: this.guard((event) => {
        this.queue.push(event);
        return ldk.Result_NoneReplayEventZ.constructor_ok();
      }),
    });
    await this.net.bind_listener("127.0.0.1", this.config.port);
    this.persistManager();
    this.timer = setInterval(this.guard(() => this.pump()), 20);
    this.chainTimer = setInterval(this.guard(() => this.sync()), 200);
  }

  versionFile(name, version) {
    return `${this.config.datadir}/${name}.v${version}`;
  }

  create() {
    const tip = this.chain.tip();
    const best = ldk.BestBlock.constructor_new(reversed(unhex(tip.hash)), tip.height);
    this.manager = ldk.ChannelManager.constructor_new(
      this.feeEstimator, this.chainMonitor.as_Watch(), this.broadcaster, this.router.as_Router(),
      this.messageRouter.as_MessageRouter(), this.logger, this.entropy, this.nodeSigner, this.signerProvider,
      this.userConfig, ldk.ChainParameters.constructor_new(ldk.Network.LDKNetwork_Regtest, best),
      Math.floor(Date.now() / 1000),
    );
    this.chain.startAt(tip.hash, tip.height);
  }

  restore() {
    const monitors = [];
    for (const name of this.saved.keys()) {
      if (name !== "manager") monitors.push(this.readMonitor(this.load(name)));
    }
    this.restored = must(
      ldk.UtilMethods.constructor_C2Tuple_ThirtyTwoBytesChannelManagerZ_read(
        this.load("manager"), this.entropy, this.nodeSigner, this.signerProvider, this.feeEstimator,
        this.chainMonitor.as_Watch(), this.broadcaster, this.router.as_Router(), this.messageRouter.as_MessageRouter(),
        this.logger, this.userConfig, monitors,
      ),
      "read manager",
    );
    this.manager = this.restored.get_b();
    for (const monitor of monitors) this.catchUp(monitor.current_best_block(), this.monitorListener(monitor));
    this.catchUp(this.manager.current_best_block(), this.managerListener());
    const watch = this.chainMonitor.as_Watch();
    for (const monitor of monitors) must(watch.watch_channel(monitor.get_funding_txo().get_a(), monitor), "watch");
  }

  readMonitor(bytes) {
    const read = ldk.UtilMethods.constructor_C2Tuple_ThirtyTwoBytesChannelMonitorZ_read(bytes, this.entropy, this.signerProvider);
    const pair = must(read, "read monitor");
    this.monitorPairs.push(pair); // LDK holds weak references only
    return pair.get_b();
  }

  // A monitor is not persisted at each block, so each is brought to the tip from where it stood.
  catchUp(best, listener) {
    this.chain.startAt(hex(reversed(best.get_block_hash())), best.get_height());
    this.chain.sync([listener]);
  }

  monitorListener(monitor) {
    return {
      connected: (raw, height) =>
        this.bindBlock(raw, height, (header, txs) =>
          monitor.block_connected(header, txs, height, this.broadcaster, this.feeEstimator, this.logger)),
      disconnected: (header, height) =>
        monitor.block_disconnected(header, height, this.broadcaster, this.feeEstimator, this.logger),
    };
  }

  bindBlock(raw, height, connect) {
    const block = this.rpc.call("getblock", hex(reversed(this.hashOf(raw))), 2);
    const txs = block.tx.map((tx, index) => ldk.TwoTuple_usizeTransactionZ.constructor_new(index, unhex(tx.hex)));
    connect(raw.slice(0, 80), txs);
  }

  hashOf(raw) {
    const sha = (bytes) => require("node:crypto").createHash("sha256").update(bytes).digest();
    return Uint8Array.from(sha(sha(raw.slice(0, 80))));
  }

  managerListener() {
    const listen = this.manager.as_Listen();
    return {
      connected: (raw, height) => listen.block_connected(raw, height),
      disconnected: (header, height) => listen.block_disconnected(header, height),
    };
  }

  listeners() {
    if (this.ghost) return [this.monitorListener(this.ghost)];
    const listen = this.chainMonitor.as_Listen();
    const monitors = {
      connected: (raw, height) => listen.block_connected(raw, height),
      disconnected: (header, height) => listen.block_disconnected(header, height),
    };
    return [monitors, this.managerListener()];
  }

  // From now on this node is nothing but an old copy of a channel's monitor.
  becomeGhost(name, version) {
    this.net.stop();
    raiseGhost(this, fs.readFileSync(this.versionFile(name, version)));
  }

  sync() {
    if (this.chain.sync(this.listeners())) this.pump();
  }

  connectNetwork() {
    this.gossip = ldk.P2PGossipSync.constructor_new(this.graph, ldk.Option_UtxoLookupZ.constructor_none(), this.logger);
    this.ignorer = ldk.IgnoringMessageHandler.constructor_new();
    this.messenger = ldk.OnionMessenger.constructor_new(
      this.entropy, this.nodeSigner, this.logger, this.manager.as_NodeIdLookUp(), this.messageRouter.as_MessageRouter(),
      this.manager.as_OffersMessageHandler(), this.ignorer.as_AsyncPaymentsMessageHandler(),
      this.ignorer.as_DNSResolverMessageHandler(), this.ignorer.as_CustomOnionMessageHandler(),
    );
    this.peers = ldk.PeerManager.constructor_new(
      this.manager.as_ChannelMessageHandler(), this.gossip.as_RoutingMessageHandler(),
      this.messenger.as_OnionMessageHandler(), this.ignorer.as_CustomMessageHandler(), Math.floor(Date.now() / 1000),
      this.entropy.get_secure_random_bytes(), this.logger, this.nodeSigner,
    );
    this.net = new Net(this.peers);
  }

  persistManager() {
    if (this.manager.get_and_clear_needs_persistence()) this.save("manager", this.manager.write());
  }

  // Runs until quiet: events first go into our queue, then are worked on outside of LDK's frames.
  pump() {
    for (let round = 0; round < 50; round += 1) {
      this.manager.as_EventsProvider().process_pending_events(this.handler);
      this.chainMonitor.as_EventsProvider().process_pending_events(this.handler);
      this.messenger.as_EventsProvider().process_pending_events(this.handler);
      if (this.ghost) this.ghost.process_pending_events(this.handler, this.logger);
      this.peers.process_events();
      const events = this.queue.splice(0);
      for (const event of events) handleEvent(this, event);
      this.persistManager();
      if (events.length === 0) return;
    }
  }

  nodeId() {
    return hex(this.manager.get_our_node_id());
  }

  channel(idHex) {
    const found = this.manager.list_channels().find((each) => hex(each.get_channel_id().get_a()) === idHex);
    if (!found) throw new Error(`no channel ${idHex}`);
    return found;
  }

  async command(name, args) {
    const action = COMMANDS[name];
    if (!action) throw new Error(`no command ${name}`);
    return action(this, args);
  }
}
