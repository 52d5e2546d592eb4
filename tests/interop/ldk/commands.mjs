// What a test can ask of an LDK node.
import fs from "node:fs";
import * as ldk from "#lightning";
import { hex, unhex } from "./chain.mjs";
import { must, optional } from "./node.mjs";

const some64 = (value) => ldk.Option_u64Z.constructor_some(BigInt(value));
const none64 = () => ldk.Option_u64Z.constructor_none();

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
    enabled: Boolean(update.get_enabled()),
    fee_base_msat: update.get_fees().get_base_msat(),
    fee_proportional_millionths: update.get_fees().get_proportional_millionths(),
    cltv_expiry_delta: update.get_cltv_expiry_delta(),
    htlc_maximum_msat: update.get_htlc_maximum_msat(),
  };


export const COMMANDS = {
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
  // With `secret` or `underpay_msat` it is not what the invoice asks for.
  pay: (node, { bolt11, amount_msat = null, most_blocks = null, secret = null, underpay_msat = 0, retries = 1 }) => {
    const invoice = must(ldk.Bolt11Invoice.constructor_from_str(bolt11), "read invoice");
    const made = amount_msat === null
      ? ldk.UtilMethods.constructor_payment_parameters_from_invoice(invoice)
      : ldk.UtilMethods.constructor_payment_parameters_from_variable_amount_invoice(invoice, BigInt(amount_msat));
    const parameters = must(made, "payment parameters");
    const [hash, route] = [parameters.get_a(), parameters.get_c()];
    if (most_blocks !== null) route.get_payment_params().set_max_total_cltv_expiry_delta(most_blocks);
    if (underpay_msat) route.set_final_value_msat(route.get_final_value_msat() - BigInt(underpay_msat));
    const fields = secret === null ? parameters.get_b() : ldk.RecipientOnionFields.constructor_secret_only(unhex(secret));
    must(node.manager.send_payment(hash, fields, hash, route, ldk.Retry.constructor_attempts(retries)), "send_payment");
    return hex(hash);
  },
  // In parts only with a payment secret.
  keysend: (node, { node_id, amount_msat, preimage, secret = null, final_delta = 42, most_blocks = null, retries = 1 }) => {
    const to = ldk.PaymentParameters.constructor_for_keysend(unhex(node_id), final_delta, secret !== null);
    if (most_blocks !== null) to.set_max_total_cltv_expiry_delta(most_blocks);
    const route = ldk.RouteParameters.constructor_from_payment_params_and_value(to, BigInt(amount_msat));
    const fields = secret === null
      ? ldk.RecipientOnionFields.constructor_spontaneous_empty()
      : ldk.RecipientOnionFields.constructor_secret_only(unhex(secret));
    const sent = node.manager.send_spontaneous_payment(
      ldk.Option_ThirtyTwoBytesZ.constructor_some(unhex(preimage)), fields, unhex(preimage), route,
      ldk.Retry.constructor_attempts(retries),
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
  cheat: (node, { funding_txid, vout, version }) => node.becomeGhost(`monitor-${funding_txid}-${vout}`, version),
  secret: (node) => hex(node.keys.get_node_secret_key()),
  // What it asks for forwarding over all its channels.
  policy: (node, { fee_base_msat, cltv_expiry_delta }) => {
    for (const each of node.manager.list_channels()) {
      const config = each.get_config().clone();
      if (fee_base_msat !== undefined) config.set_forwarding_fee_base_msat(fee_base_msat);
      if (cltv_expiry_delta !== undefined) config.set_cltv_expiry_delta(cltv_expiry_delta);
      const peer = each.get_counterparty().get_node_id();
      must(node.manager.update_channel_config(peer, [each.get_channel_id()], config), "update_channel_config");
    }
  },
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
