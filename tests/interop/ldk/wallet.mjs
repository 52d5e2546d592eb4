// LDK's wallet for fees of anchor channels: layer 1's own wallet.
import * as ldk from "#lightning";
import { hex, reversed, unhex } from "./chain.mjs";

const P2WPKH = /^0014[0-9a-f]{40}$/;
const WITNESS_WEIGHT = 108n; // of a signature and a public key

const satOf = (bitcoin) => BigInt(Math.round(bitcoin * 1e8));

function utxoOf(coin) {
  const outpoint = ldk.OutPoint.constructor_new(reversed(unhex(coin.txid)), coin.vout);
  const output = ldk.TxOut.constructor_new(satOf(coin.amount), unhex(coin.scriptPubKey));
  return ldk.Utxo.constructor_new(outpoint, output, WITNESS_WEIGHT);
}

const varint = (value) => (value < 0xfd ? [value] : [0xfd, value & 0xff, value >> 8]);

// The serialized witness of an input as decodepsbt shows it; inputs that LDK signs are empty.
function witnessOf(input) {
  const items = (input.final_scriptwitness ?? []).map((item) => unhex(item));
  return [...varint(items.length), ...items.flatMap((item) => [...varint(item.length), ...item])];
}

// A transaction without witnesses becomes one with them.
function withWitnesses(raw, inputs) {
  const body = raw.slice(4, -4);
  return Uint8Array.from([...raw.slice(0, 4), 0, 1, ...body, ...inputs.flatMap(witnessOf), ...raw.slice(-4)]);
}

// The global unsigned transaction: key 0x00 of the first map (BIP 174).
function unsignedOf(psbt) {
  const bytes = Buffer.from(psbt);
  const size = bytes[7];
  if (size < 0xfd) return psbt.slice(8, 8 + size);
  return psbt.slice(10, 10 + bytes.readUInt16LE(8));
}

export function makeBumper(node) {
  const source = ldk.WalletSource.new_impl({
    list_confirmed_utxos: node.guard(() => {
      const coins = node.rpc.call("listunspent", 1).filter((coin) => coin.spendable && P2WPKH.test(coin.scriptPubKey));
      return ldk.Result_CVec_UtxoZNoneZ.constructor_ok(coins.slice(0, 5).map(utxoOf));
    }),
    get_change_script: node.guard(() => {
      const address = node.rpc.call("getrawchangeaddress", "bech32");
      return ldk.Result_CVec_u8ZNoneZ.constructor_ok(unhex(node.rpc.call("getaddressinfo", address).scriptPubKey));
    }),
    sign_psbt: node.guard((psbt) => {
      const text = Buffer.from(psbt).toString("base64");
      const signed = node.rpc.call("walletprocesspsbt", text, true, "ALL", true, true);
      const inputs = node.rpc.call("decodepsbt", signed.psbt).inputs;
      return ldk.Result_TransactionNoneZ.constructor_ok(withWitnesses(unsignedOf(psbt), inputs));
    }),
  });
  const wallet = ldk.Wallet.constructor_new(source, node.logger);
  const coins = wallet.as_CoinSelectionSource();
  const handler = ldk.BumpTransactionEventHandler.constructor_new(node.broadcaster, coins, node.signerProvider, node.logger);
  return { source, wallet, coins, handler }; // LDK holds weak references only
}
