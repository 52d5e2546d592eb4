// An old copy of a channel's monitor comes back to life: whoever runs it cheats, or has lost what came later.

// Publishes what the copy takes for its newest commitment. From then on it follows the chain as if nothing had come after:
// it publishes its HTLC transactions, and raises their fees. The rest of the node hears of nothing any more.
export function raiseGhost(node, bytes) {
  const monitor = node.readMonitor(bytes);
  node.catchUp(monitor.current_best_block(), node.monitorListener(monitor));
  node.ghost = monitor;
  monitor.broadcast_latest_holder_commitment_txn(node.broadcaster, node.feeEstimator, node.logger);
}
