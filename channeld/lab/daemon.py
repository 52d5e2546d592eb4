"""One `channeld` process of a lab, and what tests and demos do with it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from channeld.lab.client import Client
from channeld.lab.known import KnownNetwork, known_network
from channeld.lab.processes import ManagedProcess, ProcessEnded
from channeld.paths import DataPaths, data_paths
from channeld.v1 import channels_pb2, events_pb2, invoices_pb2, node_pb2, payments_pb2, peers_pb2, wallet_pb2

WAIT_SECONDS = 60.0
LOOK_SECONDS = 0.02
"""How often to look where no event tells."""
MOST_LISTED = 10_000


class DaemonProcess:
    """A daemon with its own data directory. `module` is what Python runs; tests give another one."""

    def __init__(
        self,
        name: str,
        directory: Path,
        bitcoind_url: str,
        bitcoind_cookie: Path,
        *,
        arguments: tuple[str, ...] = (),
        env: Mapping[str, str] | None = None,
        module: str = "channeld",
    ) -> None:
        self.name = name
        self.paths: DataPaths = data_paths("regtest", directory)
        command = [sys.executable, "-m", module, "--datadir", str(directory), "--network", "regtest", "--alias", name]
        command += ["--listen", "127.0.0.1:0", "--rpclisten", "127.0.0.1:0"]
        command += ["--bitcoind-url", bitcoind_url, "--bitcoind-cookie", str(bitcoind_cookie), *arguments]
        self.process = ManagedProcess(name, command, directory / "stderr.log", env)
        self._client: Client | None = None
        self._ready: dict[str, Any] = {}

    # --- the process

    async def start(self) -> None:
        """Start, and return when it is ready. After the first start it listens where it did before."""
        await self.process.start()
        await self.wait_ready()

    async def wait_ready(self, timeout_seconds: float = WAIT_SECONDS) -> None:
        """Until it says that it is ready."""
        await self.process.wait_line("channeld is ready", timeout_seconds)
        self._ready = json.loads((self.paths.directory / "ready.json").read_text())
        self._keep_port()
        self._client = Client(self.paths)

    def _keep_port(self) -> None:
        command = self.process.command
        command[command.index("--listen") + 1] = self.address

    async def kill(self) -> None:
        """kill -9. Calls under way end as they do for any client: UNAVAILABLE."""
        await self.process.kill()
        await self._drop_client()

    async def stop(self) -> None:
        """SIGTERM, and wait."""
        await self._drop_client()
        await self.process.terminate()

    async def restart(self) -> None:
        """Start again after `kill` or `stop` (stopping it first if it runs)."""
        await self.stop()
        await self.start()

    async def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    @property
    def client(self) -> Client:
        """Its API."""
        assert self._client is not None, f"{self.name} does not run"
        return self._client

    @property
    def node_id(self) -> bytes:
        """33 bytes."""
        return bytes.fromhex(self._ready["node_id"])

    @property
    def address(self) -> str:
        """HOST:PORT for peers."""
        return str(self._ready["listen"][0])

    def memory_bytes(self) -> int:
        """Resident memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise ValueError(f"{self.name} has no memory")

    def cpu_seconds(self) -> float:
        """CPU time used so far, user and system."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    # --- what it is asked to do

    async def info(self) -> node_pb2.GetInfoResponse:
        """At a glance."""
        return await self.client.node.GetInfo(node_pb2.GetInfoRequest())

    async def connect(self, other: DaemonProcess) -> None:
        """Connect to another daemon."""
        host, _, port = other.address.rpartition(":")
        request = peers_pb2.ConnectPeerRequest(node_id=other.node_id, host=host, port=int(port))
        await self.client.peers.Connect(request)

    async def new_address(self) -> str:
        """A fresh address of its wallet."""
        return str((await self.client.wallet.NewAddress(wallet_pb2.NewAddressRequest())).address)

    async def balance(self) -> wallet_pb2.GetBalanceResponse:
        """On chain and in channels."""
        return await self.client.wallet.GetBalance(wallet_pb2.GetBalanceRequest())

    async def open_channel(self, other: DaemonProcess, amount_sat: int, **fields: Any) -> channels_pb2.Channel:
        """Returns when the funding transaction is broadcast."""
        request = channels_pb2.OpenChannelRequest(node_id=other.node_id, amount_sat=amount_sat, **fields)
        return (await self.client.channels.Open(request)).channel

    async def close_channel(self, channel_id: bytes, **fields: Any) -> channels_pb2.Channel:
        """Returns when the closing transaction is broadcast."""
        request = channels_pb2.CloseChannelRequest(channel_id=channel_id, **fields)
        return (await self.client.channels.Close(request)).channel

    async def channels(self, include_closed: bool = False) -> list[channels_pb2.Channel]:
        """All of them."""
        request = channels_pb2.ListChannelsRequest(include_closed=include_closed)
        return list((await self.client.channels.List(request)).channels)

    async def invoice(self, amount_msat: int | None, description: str = "", **fields: Any) -> invoices_pb2.Invoice:
        """A new one."""
        request = invoices_pb2.CreateInvoiceRequest(amount_msat=amount_msat, description=description, **fields)
        return (await self.client.invoices.Create(request)).invoice

    async def pay(self, bolt11: str, **fields: Any) -> payments_pb2.Payment:
        """Pay and wait for the outcome."""
        return (await self.client.payments.Pay(payments_pb2.PayRequest(bolt11=bolt11, **fields))).payment

    async def payment(self, payment_hash: bytes) -> payments_pb2.Payment:
        """What became of a payment that it made."""
        request = payments_pb2.GetPaymentRequest(payment_hash=payment_hash)
        return (await self.client.payments.Get(request)).payment

    async def received(self, payment_hash: bytes) -> invoices_pb2.Invoice:
        """What became of an invoice that it made."""
        request = invoices_pb2.GetInvoiceRequest(payment_hash=payment_hash)
        return (await self.client.invoices.Get(request)).invoice

    async def forwards(self) -> list[channels_pb2.Forward]:
        """All that it forwarded, newest first."""
        found: list[channels_pb2.Forward] = []
        while len(found) % MOST_LISTED == 0:
            request = channels_pb2.ListForwardsRequest(limit=MOST_LISTED, offset=len(found))
            page = (await self.client.channels.ListForwards(request)).forwards
            if not page:
                break
            found.extend(page)
        return found

    def network(self) -> KnownNetwork:
        """The public network, as far as it has heard of it."""
        return known_network(self.paths)

    @asynccontextmanager
    async def events(self, since_sequence: int | None = None) -> AsyncIterator[AsyncIterator[events_pb2.Event]]:
        """Its events from now on (0: from the oldest kept one); nothing is missed once this is entered."""
        call = self.client.events.Subscribe(events_pb2.SubscribeRequest(since_sequence=since_sequence))
        try:
            await call.initial_metadata()
            yield aiter(call)
        finally:
            call.cancel()

    async def wait_until(self, reached: Callable[[], Any], timeout_seconds: float = WAIT_SECONDS) -> Any:
        """Until the coroutine that `reached` makes says so (a true value, which is returned); asked again after each
        event. Raises ProcessEnded when it takes longer than `timeout_seconds`."""
        try:
            async with asyncio.timeout(timeout_seconds), self.events() as events:
                while not (found := await reached()):
                    await anext(events)
                return found
        except TimeoutError:
            what = f"{self.name} waited {timeout_seconds:g} s in vain ({reached.__qualname__})"
            raise ProcessEnded(f"{what}: {self.process.last_words()}") from None

    async def wait_peer(self, node_id: bytes) -> None:
        """Until a peer is connected."""

        async def connected() -> bool:
            peers = (await self.client.peers.List(peers_pb2.ListPeersRequest())).peers
            return any(peer.node_id == node_id and peer.connected for peer in peers)

        await self.wait_until(connected)

    async def wait_channel(self, channel_id: bytes) -> channels_pb2.Channel:
        """Until a channel is usable."""

        async def active() -> channels_pb2.Channel | None:
            return next((c for c in await self.channels() if c.channel_id == channel_id and c.active), None)

        found = await self.wait_until(active)
        assert isinstance(found, channels_pb2.Channel)
        return found

    async def wait_payment(self, payment_hash: bytes, timeout_seconds: float = WAIT_SECONDS) -> payments_pb2.Payment:
        """Until a payment has succeeded or failed."""

        async def over() -> payments_pb2.Payment | None:
            payment = await self.payment(payment_hash)
            return payment if payment.state != payments_pb2.PAYMENT_STATE_IN_FLIGHT else None

        found = await self.wait_until(over, timeout_seconds)
        assert isinstance(found, payments_pb2.Payment)
        return found

    async def wait_htlcs(self, present: bool, timeout_seconds: float = WAIT_SECONDS) -> None:
        """Until an HTLC is under way in one of its channels (`present`), or none is. No event tells: this looks often.
        Raises ProcessEnded."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    if any(channel.htlcs for channel in await self.channels()) == present:
                        return
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            what = "has no HTLC" if present else "still has HTLCs"
            words = self.process.last_words()
            raise ProcessEnded(f"{self.name} {what} after {timeout_seconds:g} s: {words}") from None

    async def wait_graph(self, short_channel_ids: Collection[int]) -> None:
        """Until it knows these public channels, and how both sides of each let others use it."""

        async def knows() -> bool:
            channels = self.network().channels
            known = [channels[scid] for scid in short_channel_ids if scid in channels]
            usable = [channel for channel in known if all(policy and policy.usable for policy in channel.policies)]
            return len(usable) == len(short_channel_ids)

        await self.wait_until(knows)

    async def wait_closed(self, channel_id: bytes) -> None:
        """Until a channel is over."""

        async def over() -> bool:
            return all(channel.channel_id != channel_id for channel in await self.channels())

        await self.wait_until(over)

    async def wait_height(self, height: int) -> None:
        """Until it has processed this block."""

        async def there() -> bool:
            info = await self.info()
            return bool(info.block_height >= height and info.synced_to_chain)

        await self.wait_until(there)
