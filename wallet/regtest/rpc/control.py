"""RPC methods about the daemon, the network that it does not have, and small utilities."""

from __future__ import annotations

import time
from typing import Any

from wallet.bitcoin import script as scripts
from wallet.bitcoin.address import REGTEST, AddressError, address_of, script_of
from wallet.regtest.errors import INVALID_PARAMETER, RpcError
from wallet.regtest.forms import rate
from wallet.regtest.rpc.registry import METHODS, Call, Json, Param, find, method

VERSION = 290000
SUBVERSION = "/Satoshi:29.0.0/"
PROTOCOL_VERSION = 70016


@method("control")
def stop(call: Call) -> Json:
    """Request a graceful shutdown."""
    call.control.stop()
    return "Bitcoin Core stopping"


@method("control")
def uptime(call: Call) -> Json:
    """Returns the total uptime of the server, in seconds."""
    return call.node.clock.uptime()


@method("control", Param("command", "string", ""))
def help(call: Call, command: str) -> Json:
    """List all commands, or get help for a specified command."""
    if command:
        return find(command).help if command in METHODS else f"help: unknown command: {command}\n"
    lines: list[str] = []
    categories = sorted({found.category for found in METHODS.values()} - {"hidden"})
    for category in categories:
        lines += ["", f"== {category.capitalize()} =="]
        lines += sorted(found.usage for found in METHODS.values() if found.category == category)
    return "\n".join(lines[1:])


@method("control")
def getrpcinfo(call: Call) -> Json:
    """Returns details of the RPC server."""
    now = time.monotonic()
    active = [{"method": name, "duration": int((now - since) * 1e6)} for name, since in call.control.active.values()]
    return {"active_commands": active, "logpath": call.control.debug_log}


@method("control", Param("mode", "string", "stats"))
def getmemoryinfo(call: Call, mode: str) -> Json:
    """Returns an object containing information about memory usage."""
    return {"locked": {"used": 0, "free": 0, "total": 0, "locked": 0, "chunks_used": 0, "chunks_free": 0}}


@method("control", Param("include", "array", None), Param("exclude", "array", None))
def logging(call: Call, include: Json, exclude: Json) -> Json:
    """Gets the logging configuration. No category can be turned on."""
    return {}


@method("hidden", *(Param(f"arg{n}", "any", None) for n in range(10)))
def echo(call: Call, *arguments: Any) -> Json:
    """Simply echo back the input arguments."""
    given = list(arguments)
    while given and given[-1] is None:
        given.pop()
    return given


@method("hidden", Param("timestamp", "int"))
def setmocktime(call: Call, timestamp: int) -> Json:
    """Set the local time to given timestamp (UNIX epoch time, 0 to go back to the system time)."""
    if timestamp < 0:
        raise RpcError(INVALID_PARAMETER, "Mocktime must be in the range [0, 9223372036], not " + str(timestamp))
    call.node.clock.mock(int(timestamp))


@method("hidden", Param("seconds", "int"))
def mockscheduler(call: Call, delta: int) -> Json:
    """Bump the scheduler into the future; nothing is scheduled here."""


@method("hidden")
def syncwithvalidationinterfacequeue(call: Call) -> Json:
    """Waits for the validation interface queue to catch up; it always has."""


# Network.


@method("network")
def getnetworkinfo(call: Call) -> Json:
    """Returns an object containing various state info regarding P2P networking, of which there is none."""
    policy = call.node.mempool.policy
    return {
        "version": VERSION,
        "subversion": SUBVERSION,
        "protocolversion": PROTOCOL_VERSION,
        "localservices": "0000000000000c09",
        "localservicesnames": ["NETWORK", "WITNESS", "NETWORK_LIMITED", "P2P_V2"],
        "localrelay": True,
        "timeoffset": 0,
        "networkactive": True,
        "connections": 0,
        "connections_in": 0,
        "connections_out": 0,
        "networks": [
            {"name": name, "limited": False, "reachable": True, "proxy": "", "proxy_randomize_credentials": False}
            for name in ("ipv4", "ipv6")
        ],
        "relayfee": rate(policy.min_relay_fee),
        "incrementalfee": rate(policy.incremental_relay_fee),
        "localaddresses": [],
        "warnings": [],
    }


@method("network")
def getconnectioncount(call: Call) -> Json:
    """Returns the number of connections to other nodes."""
    return 0


@method("network")
def getpeerinfo(call: Call) -> Json:
    """Returns data about each connected network peer as a json array of objects."""
    return []


@method("network")
def ping(call: Call) -> Json:
    """Requests that a ping be sent to all other nodes."""


@method("network")
def getnettotals(call: Call) -> Json:
    """Returns information about network traffic."""
    target = {
        "timeframe": 86400,
        "target": 0,
        "target_reached": False,
        "serve_historical_blocks": True,
        "bytes_left_in_cycle": 0,
        "time_left_in_cycle": 0,
    }
    return {
        "totalbytesrecv": 0,
        "totalbytessent": 0,
        "timemillis": int(time.time() * 1000),
        "uploadtarget": target,
    }


# Utilities.


@method("util", Param("index_name", "string", ""))
def getindexinfo(call: Call, index_name: str) -> Json:
    """Returns the status of one or all available indices currently running in the node."""
    indices = {"txindex": {"synced": True, "best_block_height": call.node.chain.height}}
    return {name: info for name, info in indices.items() if index_name in ("", name)}


@method("util", Param("address", "string"))
def validateaddress(call: Call, address: str) -> Json:
    """Return information about the given bitcoin address."""
    try:
        script = script_of(address, REGTEST)
    except AddressError as error:
        return {"isvalid": False, "error_locations": [], "error": str(error)}
    form: dict[str, Json] = {
        "isvalid": True,
        "address": address_of(script, REGTEST),
        "scriptPubKey": script.hex(),
        "isscript": scripts.is_p2sh(script) or scripts.is_p2wsh(script) or scripts.is_p2tr(script),
        "iswitness": False,
    }
    program = scripts.witness_program(script)
    if program is not None:
        form |= {"iswitness": True, "witness_version": program[0], "witness_program": program[1].hex()}
    return form


@method("zmq")
def getzmqnotifications(call: Call) -> Json:
    """Returns information about the active ZeroMQ notifications."""
    return call.control.notifications
