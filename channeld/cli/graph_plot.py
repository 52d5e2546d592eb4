"""The picture of `channelctl graph plot`: arranged by igraph, drawn by matplotlib (both from the extra `plot`).

Few nodes are drawn with their names and the capacity of every channel; many as a density, with the names of the
largest. This node, its channels and its peers stand out in both. Only public channels are drawn: pictures get about.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from channeld.cli.failures import FAILED, CliError
from channeld.cli.output import printable

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from channeld.v1.graph_pb2 import GraphPage

    Points = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

FEW_NODES = 60
"""So many are drawn one by one, with names."""
FEW_CHANNELS = 150
MOST_NAMES = 24
ROUNDS = 300
"""Of the arrangement: seconds for the public network."""
FAR_PERCENTILE = 99.7
NAME_LENGTH = 22
DPI = 100
HEIGHT = 0.75
"""Of the picture, in its widths."""
ROOM_BELOW_TITLE = 0.93
BACKGROUND = "#0c1220"
TEXT = "#dfe7f5"
FAINT = "#8b9bb8"
EDGE = "#5b8bd0"
NODE = "#7fb2ff"
OWN = "#ffb02e"
PEER = "#ffd58a"


class Node(NamedTuple):
    """A node as drawn."""

    name: str
    capacity_sat: int
    is_own: bool


class Channel(NamedTuple):
    """A channel between two nodes, by their positions in `Network.nodes`."""

    first: int
    second: int
    capacity_sat: int
    usable: bool


class Network(NamedTuple):
    """What is drawn."""

    nodes: list[Node]
    channels: list[Channel]

    @classmethod
    def collect(cls, pages: Iterable[GraphPage]) -> Network:
        """From the daemon's answer: nodes first, then channels."""
        index: dict[bytes, int] = {}
        nodes: list[Node] = []
        channels: list[Channel] = []
        for page in pages:
            for node in page.nodes:
                index[node.node_id] = len(nodes)
                name = printable(node.alias).strip() or node.node_id.hex()[:8]
                nodes.append(Node(name, node.capacity_sat, node.is_own))
            for channel in page.channels:
                ends = index.get(channel.node_id_1), index.get(channel.node_id_2)
                if ends[0] is not None and ends[1] is not None:
                    usable = channel.policy_1.usable or channel.policy_2.usable
                    channels.append(Channel(ends[0], ends[1], channel.capacity_sat, usable))
        return cls(nodes, channels)

    @property
    def own(self) -> int | None:
        """This node's position, if it has a public channel."""
        return next((at for at, node in enumerate(self.nodes) if node.is_own), None)

    @property
    def is_small(self) -> bool:
        """Whether there is room for every name."""
        return len(self.nodes) <= FEW_NODES and len(self.channels) <= FEW_CHANNELS


def require_libraries() -> None:
    """Raises `CliError` if what draws is not installed."""
    missing = [name for name in ("igraph", "matplotlib") if find_spec(name) is None]
    if missing:
        raise CliError(
            f"Drawing needs {' and '.join(missing)}, which is not installed here.",
            "Install it with `pip install 'channeld[plot]'`.",
            FAILED,
        )


def draw(network: Network, file: Path, *, title: str = "", size: int = 2000, seed: int = 1) -> None:
    """Writes the picture, PNG or SVG by the file's ending; `size` is its longer side in pixels.

    The same network with the same `seed` gives the same picture. Raises `CliError` if the file cannot be written, or
    there is nothing to draw.
    """
    if not network.channels:
        raise CliError(
            "No public channel is known: there is nothing to draw.",
            "Connect to a peer, and wait until `channelctl graph info` says that the network is known.",
            FAILED,
        )
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # What the network says is nobody's formula, and the same picture is to be the same file.
    with matplotlib.rc_context({"text.parse_math": False, "svg.hashsalt": "channeld", "font.family": "DejaVu Sans"}):
        side = size / DPI
        figure = Figure(figsize=(side, side * HEIGHT), dpi=DPI, facecolor=BACKGROUND)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.0, 0.0, 1.0, ROOM_BELOW_TITLE))
        axes.set_axis_off()
        places = arrange(network, seed)
        scale = side / 20
        if network.is_small:
            _draw_few(axes, network, places, scale)
        else:
            _draw_many(axes, network, places, scale)
        _captions(figure, network, title, scale)
        metadata: dict[str, Any] = {"Date": None} if file.suffix.lower() == ".svg" else {}
        try:
            figure.savefig(file, dpi=DPI, facecolor=BACKGROUND, metadata=metadata)
        except OSError as error:
            raise CliError(f"{file} cannot be written: {error.strerror}.", "Name another file.", FAILED) from None


# Where the nodes are


def arrange(network: Network, seed: int) -> Points:
    """A place in the unit disc for each node: connected ones near each other, small islands around the mainland."""
    import igraph
    import numpy as np

    igraph.set_random_number_generator(random.Random(seed))
    pairs = sorted({(min(c.first, c.second), max(c.first, c.second)) for c in network.channels})
    whole = igraph.Graph(n=len(network.nodes), edges=pairs)
    whole.vs["at"] = range(len(network.nodes))
    mainland, *islands = sorted(whole.decompose(), key=lambda part: -part.vcount())
    places = np.zeros((len(network.nodes), 2))
    places[mainland.vs["at"]] = (0.9 if islands else 1.0) * _island(mainland)
    angles = np.linspace(0, 2 * math.pi, len(islands), endpoint=False) + math.pi / 2
    room = min(0.1, 2.0 / (len(islands) + 1))
    for number, island in enumerate(islands):
        # In three rings, so that hundreds of them do not touch.
        distance = 0.94 + 0.03 * (number % 3)
        middle = distance * np.array([math.cos(angles[number]), math.sin(angles[number])])
        places[island.vs["at"]] = middle + room * _island(island)
    return places


def _island(graph: Any) -> Points:
    """The arrangement of nodes that are all connected, in the unit disc."""
    import numpy as np

    if graph.vcount() <= 2:
        return np.array([[-0.7, 0.0], [0.7, 0.0]])[: graph.vcount()]
    if graph.vcount() <= FEW_NODES:
        layout = graph.layout_kamada_kawai()
    else:
        layout = graph.layout_fruchterman_reingold(niter=ROUNDS, grid="grid" if graph.vcount() > 1000 else "nogrid")
    places: Points = np.array(layout.coords, np.float64)
    places -= (
        (places.max(axis=0) + places.min(axis=0)) / 2 if graph.vcount() <= FEW_NODES else np.median(places, axis=0)
    )
    radius = np.hypot(places[:, 0], places[:, 1])
    if graph.vcount() <= FEW_NODES:
        return np.asarray(places / radius.max())
    # Crowded in the middle, a few far out: halfway towards the same room for everyone.
    bent = (radius / np.percentile(radius, FAR_PERCENTILE)).clip(0, 1) ** 0.7
    even = np.sqrt(np.argsort(np.argsort(radius)) / len(radius))
    return np.asarray(places * ((bent + even) / 2 / np.maximum(radius, 1e-9))[:, None])


# How they are drawn


def _draw_few(axes: Axes, network: Network, places: Points, scale: float) -> None:
    """Every node with its name, every channel with its capacity."""
    from matplotlib.patches import FancyArrowPatch

    places = places * (1.45, 1.0)
    largest = max(channel.capacity_sat for channel in network.channels) or 1
    between: dict[tuple[int, int], int] = {}
    for channel in network.channels:
        pair = min(channel.first, channel.second), max(channel.first, channel.second)
        number = between[pair] = between.get(pair, -1) + 1
        bend = ((number + 1) // 2) * 0.18 * (1 if number % 2 else -1)  # several channels of two nodes: fanned out
        start, end = places[pair[0]], places[pair[1]]
        is_own = network.own in pair
        axes.add_patch(
            FancyArrowPatch(
                tuple(start),
                tuple(end),
                connectionstyle=f"arc3,rad={bend}",
                arrowstyle="-",
                linewidth=scale * (1.5 + 6 * math.sqrt(channel.capacity_sat / largest)),
                linestyle="-" if channel.usable else (0, (2, 2)),
                color=OWN if is_own else EDGE,
                alpha=0.85 if channel.usable else 0.45,
                zorder=1,
            )
        )
        across = (start[1] - end[1], end[0] - start[0])
        middle = (start + end) / 2 - bend / 2 * _array(across)
        _text(axes, middle, f"{_amount(channel.capacity_sat)}", 13 * scale, PEER if is_own else FAINT, boxed=True)
    peers = _peers(network)
    most = max(node.capacity_sat for node in network.nodes) or 1
    for at, node in enumerate(network.nodes):
        color = OWN if node.is_own else PEER if at in peers else NODE
        area = (900 + 2600 * math.sqrt(node.capacity_sat / most)) * scale**2
        axes.scatter(
            places[at, 0], places[at, 1], s=area, color=color, edgecolors=BACKGROUND, linewidths=3 * scale, zorder=2
        )
        if node.is_own:
            axes.scatter(
                places[at, 0],
                places[at, 1],
                s=area * 1.7,
                facecolors="none",
                edgecolors=OWN,
                linewidths=3 * scale,
                zorder=2,
            )
        drop = (math.sqrt(area * (1.7 if node.is_own else 1)) / 2 + 16 * scale) / 72
        name = f"{_cut(node.name)}{' (this node)' if node.is_own else ''}"
        _text(axes, places[at], name, 18 * scale, TEXT, below_inches=drop, bold=node.is_own, haloed=True)
    reach = abs(places).max(axis=0)
    _show(axes, reach[0] + 0.3, reach[1] + 0.3)


def _draw_many(axes: Axes, network: Network, places: Points, scale: float) -> None:
    """A density of channels, nodes by capacity, our neighbourhood above all, and the largest by name."""
    import numpy as np
    from matplotlib.collections import LineCollection

    places = places * (1.33, 1.0)
    ends = np.array([(channel.first, channel.second) for channel in network.channels])
    capacity = np.array([node.capacity_sat for node in network.nodes], np.float64)
    is_large = len(ends) > 2000
    # The more lines, the fainter each: together they show where the network is dense.
    alpha = min(0.5, max(0.045, 7 / math.sqrt(len(ends))))
    axes.add_collection(
        LineCollection(places[ends], colors=EDGE, linewidths=0.5 * scale, alpha=alpha, zorder=1, rasterized=is_large)
    )
    share = (np.log10(capacity + 1) - 4).clip(0) / max(1.0, math.log10(capacity.max() + 1) - 4)
    order = np.argsort(capacity)
    axes.scatter(
        places[order, 0],
        places[order, 1],
        s=((0.9 + 9 * share[order] ** 4) * scale) ** 2,
        c=share[order],
        cmap="cool",
        vmin=0.2,
        vmax=1.05,
        linewidths=0,
        alpha=0.9,
        zorder=2,
        rasterized=is_large,
    )
    own = network.own
    if own is not None:
        peers = sorted(_peers(network))
        lines = places[ends[(ends == own).any(axis=1)]]
        axes.add_collection(LineCollection(lines, colors=OWN, linewidths=1.1 * scale, alpha=0.7, zorder=3))
        axes.scatter(places[peers, 0], places[peers, 1], s=(5 * scale) ** 2, color=PEER, linewidths=0, zorder=4)
        axes.scatter(
            places[own, 0],
            places[own, 1],
            s=(13 * scale) ** 2,
            color=OWN,
            edgecolors=BACKGROUND,
            linewidths=2 * scale,
            zorder=5,
        )
        axes.scatter(
            places[own, 0],
            places[own, 1],
            s=(24 * scale) ** 2,
            facecolors="none",
            edgecolors=OWN,
            linewidths=2 * scale,
            zorder=5,
        )
    _show(axes, 1.4, 1.04)
    named = [int(at) for at in order[::-1][: 3 * MOST_NAMES]]
    if own is not None:
        named = [own, *(at for at in named if at != own)]
    _name_largest(axes, network, places, named, scale)


def _show(axes: Axes, half_width: float, half_height: float) -> None:
    """What has to be seen around the middle, without distortion."""
    ratio = 1 / (HEIGHT * ROOM_BELOW_TITLE)
    half_height = max(half_height, half_width / ratio)
    axes.set_xlim(-half_height * ratio, half_height * ratio)
    axes.set_ylim(-half_height, half_height)


def _name_largest(axes: Axes, network: Network, places: Points, candidates: list[int], scale: float) -> None:
    """Names where there is room: the first come first."""
    figure: Any = axes.figure
    renderer = figure.canvas.get_renderer()
    taken: list[Any] = []
    for at in candidates:
        node = network.nodes[at]
        size, color = (15 * scale, OWN) if node.is_own else (10.5 * scale, TEXT)
        name = f"{_cut(node.name)}{' (this node)' if node.is_own else ''}"
        drop = (26 if node.is_own else 12) * scale / 72
        text = _text(axes, places[at], name, size, color, below_inches=drop, bold=node.is_own, haloed=True)
        box = text.get_window_extent(renderer).padded(3 * scale)
        if any(box.overlaps(other) for other in taken):
            text.remove()
            continue
        taken.append(box)
        if len(taken) > MOST_NAMES:
            return


def _text(
    axes: Axes,
    place: Any,
    text: str,
    size: float,
    color: str,
    *,
    below_inches: float = 0.0,
    bold: bool = False,
    boxed: bool = False,
    haloed: bool = False,
) -> Any:
    """Words at a place, or below it. `boxed` on a patch of background, `haloed` with an outline of it."""
    from matplotlib.patheffects import withStroke

    effects = [withStroke(linewidth=size / 4, foreground=BACKGROUND)] if haloed else None
    box = {"boxstyle": "round,pad=0.25", "facecolor": BACKGROUND, "edgecolor": "none", "alpha": 0.85} if boxed else None
    return axes.annotate(
        _in_font(text),
        tuple(place),
        xytext=(0, -72 * below_inches),
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=size,
        color=color,
        fontweight="bold" if bold else "normal",
        bbox=box,
        path_effects=effects,
        zorder=6,
    )


def _captions(figure: Figure, network: Network, title: str, scale: float) -> None:
    capacity_sat = sum(channel.capacity_sat for channel in network.channels)
    facts = f"{len(network.nodes):,} nodes, {len(network.channels):,} public channels, {_amount(capacity_sat)}"
    if network.own is None:
        facts += "; this node has no public channel"
    else:
        own = sum(network.own in (channel.first, channel.second) for channel in network.channels)
        facts += f"; this node has {own} with {len(_peers(network))} peers"
    heading = _in_font(title or "The Lightning Network as this node knows it")
    figure.text(0.5, 0.965, heading, color=TEXT, fontsize=24 * scale, ha="center", va="center", fontweight="bold")
    figure.text(0.5, 0.93, facts, color=FAINT, fontsize=14 * scale, ha="center", va="center")


def _peers(network: Network) -> set[int]:
    own = network.own
    both = ((c.first, c.second) for c in network.channels)
    return {end for ends in both if own in ends for end in ends if end != own}


def _in_font(text: str) -> str:
    """`text` without what the font cannot draw: names are full of pictures."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return "".join(char for char in text if font.get_char_index(ord(char))).strip() or "?"


def _array(values: tuple[float, float]) -> Points:
    import numpy as np

    return np.array(values)


def _amount(amount_sat: int) -> str:
    """`1,234.50 BTC`, or `20,000 sat`."""
    return f"{amount_sat / 1e8:,.2f} BTC" if amount_sat >= 10_000_000 else f"{amount_sat:,} sat"


def _cut(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
