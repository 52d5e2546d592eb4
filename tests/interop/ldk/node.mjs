// An LDK node over TCP, on the chain of a bitcoind-like layer 1.
import fs from "node:fs";
import { createRequire } from "node:module";
import * as ldk from "lightningdevkit";
import { NodeLDKNet } from "lightningdevkit-node-net";
import { Chain, hex, reversed, unhex } from "./chain.mjs";
import { Rpc } from "./rpc.mjs";
import { handleEvent } from "./events.mjs";
import { makeBumper, oldCommitment } from "./wallet.mjs";

const require = createRequire(import.meta.url);
const some64 = (value) => ldk.Option_u64Z.constructor_some(BigInt(value));
const ONION_ERROR = /^Onion Error\[from ([0-9a-f]{66}): (\w+)\((0x[0-9a-f]+)\)/;
const none64 = () => ldk.Option_u64Z.constructor_none();
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
      const name = `${this.config.datadir}/monitor-${hex(outpoint.get_txid())}-${outpoint.get_index()}`;
      const bytes = monitor.write();
      this.save(name, bytes);
      if (this.config.keep_versions) fs.writeFileSync(`${name}.v${monitor.get_latest_update_id()}`, bytes);
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

  save(name, bytes) {
    fs.writeFileSync(`${name}.tmp`, bytes);
    fs.renameSync(`${name}.tmp`, name);
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
    if (fs.existsSync(this.managerFile())) this.restore();
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

  managerFile() {
    return `${this.config.datadir}/manager`;
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
    for (const name of fs.readdirSync(this.config.datadir)) {
      if (!/^monitor-[0-9a-f]{64}-\d+$/.test(name)) continue;
      const bytes = fs.readFileSync(`${this.config.datadir}/${name}`);
      const read = ldk.UtilMethods.constructor_C2Tuple_ThirtyTwoBytesChannelMonitorZ_read(
        bytes, this.entropy, this.signerProvider,
      );
      monitors.push(must(read, "read monitor").get_b());
    }
    this.restored = must(
      ldk.UtilMethods.constructor_C2Tuple_ThirtyTwoBytesChannelManagerZ_read(
        fs.readFileSync(this.managerFile()), this.entropy, this.nodeSigner, this.signerProvider, this.feeEstimator,
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

  sync() {
    const listen = this.chainMonitor.as_Listen();
    const monitor = {
      connected: (raw, height) => listen.block_connected(raw, height),
      disconnected: (header, height) => listen.block_disconnected(header, height),
    };
    if (this.chain.sync([monitor, this.managerListener()])) this.pump();
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
    this.net = new NodeLDKNet(this.peers);
  }

  persistManager() {
    if (this.manager.get_and_clear_needs_persistence()) this.save(this.managerFile(), this.manager.write());
  }

  // Runs until quiet: events first go into our queue, then are worked on outside of LDK's frames.
  pump() {
    for (let round = 0; round < 50; round += 1) {
      this.manager.as_EventsProvider().process_pending_events(this.handler);
      this.chainMonitor.as_EventsProvider().process_pending_events(this.handler);
      this.messenger.as_EventsProvider().process_pending_events(this.handler);
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

const describe = (each) => ({
  channel_id: hex(each.get_channel_id().get_a()),
  peer: hex(each.get_counterparty().get_node_id()),
  capacity_sat: each.get_channel_value_satoshis(),
  outbound_msat: each.get_outbound_capacity_msat(),
  feerate_per_kw: optional(each.get_feerate_sat_per_1000_weight()),
  inbound_msat: each.get_inbound_capacity_msat(),
  ready: Boolean(each.get_is_channel_ready()),
  usable: Boolean(each.get_is_usable()),
  announced: Boolean(each.get_is_announced()),
  scid: optional(each.get_short_channel_id()),
  channel_type: each.get_channel_type() ? hex(each.get_channel_type().write()) : null,
  reserve_sat: optional(each.get_unspendable_punishment_reserve()),
  htlcs: each.get_pending_inbound_htlcs().length + each.get_pending_outbound_htlcs().length,
});

const policyOf = (update) =>
  update && {
    enabled: update.get_enabled(),
    cltv_expiry_delta: update.get_cltv_expiry_delta(),
    htlc_maximum_msat: update.get_htlc_maximum_msat(),
  };

const payment = (node, hash, fields, id, params) =>
  must(node.manager.send_payment(hash, fields, id, params, ldk.Retry.constructor_attempts(1)), "send_payment");

const COMMANDS = {
  info: (node) => ({
    node_id: node.nodeId(),
    height: node.manager.current_best_block().get_height(),
    peers: node.peers.list_peers().map((peer) => hex(peer.get_counterparty_node_id())),
  }),
  features: (node) =>
    Object.fromEntries(node.peers.list_peers().map((peer) => [
      hex(peer.get_counterparty_node_id()),
      hex(peer.get_init_features().write().slice(2)),
    ])),
  channels: (node) => node.manager.list_channels().map(describe),
  connect: async (node, { host, port, node_id }) => {
    await node.net.connect_peer(host, port, unhex(node_id));
  },
  disconnect: (node, { node_id }) => node.peers.disconnect_by_node_id(unhex(node_id)),
  open: (node, { node_id, amount_sat, push_msat = 0, channels = {} }) => {
    const opened = node.manager.create_channel(
      unhex(node_id), BigInt(amount_sat), BigInt(push_msat), 0n, null, node.makeUserConfig(channels),
    );
    return hex(must(opened, "create_channel").get_a());
  },
  invoice: (node, { amount_msat = null, description = "", expiry_seconds = 86400 }) => {
    const amount = amount_msat === null ? none64() : some64(amount_msat);
    const made = ldk.UtilMethods.constructor_create_invoice_from_channelmanager(
      node.manager, amount, description, expiry_seconds, ldk.Option_u16Z.constructor_none(),
    );
    return must(made, "invoice").to_str();
  },
  pay: (node, { bolt11, amount_msat = null, most_blocks = null }) => {
    const invoice = must(ldk.Bolt11Invoice.constructor_from_str(bolt11), "read invoice");
    const made = amount_msat === null
      ? ldk.UtilMethods.constructor_payment_parameters_from_invoice(invoice)
      : ldk.UtilMethods.constructor_payment_parameters_from_variable_amount_invoice(invoice, BigInt(amount_msat));
    const parameters = must(made, "payment parameters");
    if (most_blocks !== null) parameters.get_c().get_payment_params().set_max_total_cltv_expiry_delta(most_blocks);
    payment(node, parameters.get_a(), parameters.get_b(), parameters.get_a(), parameters.get_c());
    return hex(parameters.get_a());
  },
  keysend: (node, { node_id, amount_msat, preimage, final_delta = 42 }) => {
    const to = ldk.PaymentParameters.constructor_for_keysend(unhex(node_id), final_delta, false);
    const route = ldk.RouteParameters.constructor_from_payment_params_and_value(to, BigInt(amount_msat));
    const sent = node.manager.send_spontaneous_payment(
      ldk.Option_ThirtyTwoBytesZ.constructor_some(unhex(preimage)), ldk.RecipientOnionFields.constructor_spontaneous_empty(),
      unhex(preimage), route, ldk.Retry.constructor_attempts(1),
    );
    return hex(must(sent, "send_spontaneous_payment"));
  },
  // The binding's setters of an offer have no effect: whoever pays says how much.
  offer: (node) => {
    const builder = must(node.manager.create_offer_builder(none64()), "create_offer_builder");
    return must(builder.build(), "offer").to_str();
  },
  pay_offer: (node, { offer, amount_msat, id }) => {
    const read = must(ldk.Offer.constructor_from_str(offer), "read offer");
    const asked = node.manager.pay_for_offer(
      read, none64(), some64(amount_msat), ldk.Option_StrZ.constructor_none(), unhex(id),
      ldk.Retry.constructor_attempts(1), none64(),
    );
    must(asked, "pay_for_offer");
  },
  close: (node, { channel_id }) => {
    const each = node.channel(channel_id);
    must(node.manager.close_channel(each.get_channel_id(), each.get_counterparty().get_node_id()), "close_channel");
  },
  force: (node, { channel_id }) => {
    const each = node.channel(channel_id);
    const peer = each.get_counterparty().get_node_id();
    must(node.manager.force_close_broadcasting_latest_txn(each.get_channel_id(), peer, "test"), "force close");
  },
  claim: (node, { preimage }) => node.manager.claim_funds(unhex(preimage)),
  fail: (node, { payment_hash }) => node.manager.fail_htlc_backwards(unhex(payment_hash)),
  // Every version of the channel's monitor that was saved (with keep_versions), oldest first.
  versions: (node, { funding_txid }) => {
    const name = new RegExp(`^monitor-${funding_txid}-\\d+\\.v(\\d+)$`);
    const found = fs.readdirSync(node.config.datadir).map((file) => name.exec(file)).filter(Boolean);
    return found.map((match) => Number(match[1])).sort((a, b) => a - b);
  },
  old_commitment: (node, { funding_txid, vout, version }) =>
    oldCommitment(node, fs.readFileSync(`${node.config.datadir}/monitor-${funding_txid}-${vout}.v${version}`)),
  sync: (node) => node.sync(),
  graph: (node) => {
    const graph = node.graph.read_only(); // holds a lock until it is freed
    try {
      return Array.from(graph.list_channels(), (scid) => {
        const channel = graph.channel(scid);
        return { scid: String(scid), policies: [channel.get_one_to_two(), channel.get_two_to_one()].map(policyOf) };
      });
    } finally {
      graph.free();
    }
  },
  announce: (node, { alias }) => {
    const bytes = new Uint8Array(32);
    bytes.set(Buffer.from(alias));
    node.peers.broadcast_node_announcement(Uint8Array.of(1, 2, 3), bytes, []);
  },
  tick: (node) => node.manager.timer_tick_occurred(),
  set: (node, { auto = {}, fees = {}, hold_broadcast }) => {
    Object.assign(node.auto, auto);
    Object.assign(node.fees, fees);
    if (hold_broadcast !== undefined) node.chain.hold = hold_broadcast;
  },
  decode: (_node, { bolt11 }) => {
    const invoice = must(ldk.Bolt11Invoice.constructor_from_str(bolt11), "read invoice");
    return {
      payment_hash: hex(invoice.payment_hash()),
      payee: hex(invoice.recover_payee_pub_key()),
      amount_msat: optional(invoice.amount_milli_satoshis()),
      expiry_seconds: invoice.expiry_time(),
      min_final_cltv_expiry_delta: invoice.min_final_cltv_expiry_delta(),
      route_hints: invoice.route_hints().length,
    };
  },
  stop: (node) => {
    clearInterval(node.timer);
    clearInterval(node.chainTimer);
    node.persistManager();
    node.net.stop();
    setImmediate(() => process.exit(0));
  },
};
