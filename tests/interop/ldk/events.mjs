// What LDK tells its application, turned into lines for the test, and what a plain wallet does by itself.
import * as ldk from "#lightning";
import { hex, unhex } from "./chain.mjs";
import { must, optional } from "./node.mjs";

const preimageOf = (purpose) => ("payment_preimage" in purpose ? optional(purpose.payment_preimage) : (purpose.spontaneous_payment ?? null));

function fund(node, event) {
  const script = hex(event.output_script);
  const address = node.rpc.call("decodescript", script).address;
  const amount = (Number(event.channel_value_satoshis) / 1e8).toFixed(8);
  const raw = node.rpc.call("createrawtransaction", [], { [address]: amount });
  const funded = node.rpc.call("fundrawtransaction", raw, { fee_rate: 2 });
  const signed = node.rpc.call("signrawtransactionwithwallet", funded.hex);
  const made = node.manager.funding_transaction_generated(
    event.temporary_channel_id, event.counterparty_node_id, unhex(signed.hex),
  );
  must(made, "funding_transaction_generated");
}

function accept(node, event) {
  const accepted = node.auto.zero_conf
    ? node.manager.accept_inbound_channel_from_trusted_peer_0conf(event.temporary_channel_id, event.counterparty_node_id, 0n)
    : node.manager.accept_inbound_channel(event.temporary_channel_id, event.counterparty_node_id, 0n);
  if (!accepted.is_ok()) node.emit("accept_failed", { error: accepted.err?.err ?? accepted.err?.constructor?.name });
}

function sweep(node, event) {
  const script = node.rpc.call("getaddressinfo", node.rpc.call("getnewaddress")).scriptPubKey;
  const spent = node.keys.as_OutputSpender().spend_spendable_outputs(
    event.outputs, [], unhex(script), 1000, ldk.Option_u32Z.constructor_none(),
  );
  if (spent.is_ok()) node.chain.broadcast([spent.res]);
  return spent.is_ok();
}

const channelFields = (event) => ({ channel_id: hex(event.channel_id.get_a()), peer: hex(event.counterparty_node_id) });

const HANDLERS = {
  FundingGenerationReady: (node, event) => {
    if (node.auto.fund) fund(node, event);
    return { capacity_sat: event.channel_value_satoshis };
  },
  OpenChannelRequest: (node, event) => {
    if (node.auto.accept) accept(node, event);
    return { funding_sat: event.funding_satoshis, channel_type: hex(event.channel_type.write()) };
  },
  ChannelPending: (_node, event) => ({ ...channelFields(event), funding_txid: hex(event.funding_txo.get_txid()) }),
  ChannelReady: (_node, event) => channelFields(event),
  ChannelClosed: (_node, event) => ({ ...channelFields(event), reason: event.reason.constructor.name }),
  PaymentClaimable: (node, event) => {
    const preimage = preimageOf(event.purpose);
    if (node.auto.claim && preimage) node.manager.claim_funds(preimage);
    return { payment_hash: hex(event.payment_hash), amount_msat: event.amount_msat, preimage };
  },
  PaymentClaimed: (_node, event) => ({ payment_hash: hex(event.payment_hash), amount_msat: event.amount_msat }),
  PaymentSent: (_node, event) => ({ payment_hash: hex(event.payment_hash), preimage: hex(event.payment_preimage) }),
  PaymentFailed: (_node, event) => {
    const hash = optional(event.payment_hash);
    return { payment_hash: hash ? hex(hash) : null, reason: optional(event.reason) };
  },
  PendingHTLCsForwardable: (node) => {
    node.manager.process_pending_htlc_forwards();
    return null;
  },
  PaymentPathFailed: (_node, event) => ({
    payment_hash: hex(event.payment_hash),
    permanent: Boolean(event.payment_failed_permanently),
    scid: String(optional(event.short_channel_id) ?? ""),
  }),
  PaymentForwarded: (_node, event) => ({ fee_msat: optional(event.total_fee_earned_msat) }),
  HTLCHandlingFailed: (_node, event) => ({ where: event.failed_next_destination.constructor.name.split("_").pop() }),
  BumpTransaction: (node, event) => {
    if (node.auto.bump) node.bumper.handler.handle_event(event.bump_transaction);
    return { kind: event.bump_transaction.constructor.name.split("_").pop() };
  },
  SpendableOutputs: (node, event) => ({ count: event.outputs.length, swept: sweep(node, event) }),
};

export function handleEvent(node, event) {
  const name = event.constructor.name.replace(/^Event_/, "");
  const handler = HANDLERS[name];
  const fields = handler ? handler(node, event) : {};
  if (fields !== null) node.emit(name, fields);
}
