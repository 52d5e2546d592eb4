"""Prometheus metrics over HTTP, for any daemon."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

from aiohttp import web
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from watchtower.rpc.listen import WILDCARDS, ListenError, join_address

Figures = Mapping[str, tuple[str, float]]
"""A metric's name without the program's: what it is, and how much."""


def gauges(program: str, figures: Figures) -> Iterator[Metric]:
    """Named `<program>_<name>`."""
    for name, (text, value) in figures.items():
        yield GaugeMetricFamily(f"{program}_{name}", text, value=value)


def counters(program: str, figures: Figures) -> Iterator[Metric]:
    """Named `<program>_<name>_total`."""
    for name, (text, value) in figures.items():
        yield CounterMetricFamily(f"{program}_{name}", text, value=value)


class MetricsServer:
    """`http://HOST:PORT/metrics`, and `/health` with status 200 while the chain is followed, else 503. `refresh` is
    awaited before the registry is asked."""

    def __init__(
        self,
        listen: tuple[str, int],
        registry: CollectorRegistry,
        healthy: Callable[[], bool],
        refresh: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._host, self._port = listen
        self._registry = registry
        self._healthy = healthy
        self._refresh = refresh
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def start(self) -> None:
        """Raises ListenError."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            where = join_address(self._host, self._port)
            raise ListenError(f"The metrics cannot listen on {where}: {error.strerror or error}.") from error
        port = self._runner.addresses[0][1]
        self.url = f"http://{join_address(WILDCARDS.get(self._host, self._host), port)}/metrics"

    async def _metrics(self, request: web.Request) -> web.Response:
        if self._refresh is not None:
            await self._refresh()
        encoder, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encoder(self._registry), headers={"Content-Type": content_type})

    async def _health(self, request: web.Request) -> web.Response:
        healthy = self._healthy()
        return web.Response(text="ok\n" if healthy else "not in step with the chain\n", status=200 if healthy else 503)

    async def stop(self) -> None:
        """Stop."""
        if self._runner is not None:
            await self._runner.cleanup()
