"""How plots look, and how a figure becomes a PNG file and an SVG that follows the page's light and dark colours.

Figures are drawn with a fixed palette that people with deuteranopia can tell apart (after Okabe & Ito).
"""

from __future__ import annotations

import contextlib
import html
import io
import re
from collections.abc import Iterator
from typing import Any

INK, MUTED, GRID, UNPRUNED, SURFACE = "#1b1f24", "#59636e", "#d8dee4", "#b4bcc6", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072b2", "#d98c00", "#009e73", "#b0578d", "#56b4e9"
WHITE = "#fffffe"  # on heat maps, which look the same on light and dark pages; SURFACE turns dark with the page
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY)
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
HEAT = "cividis"

HALF, WIDE = 5.2, 10.6  # inches; the page shows two half plots side by side

_PAGE_COLORS = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    UNPRUNED: "--unpruned",
    SURFACE: "--surface",
    BLUE: "--blue",
    ORANGE: "--orange",
    GREEN: "--green",
    PURPLE: "--purple",
    SKY: "--sky",
}
_STYLE: dict[str, dict[str, Any]] = {
    "font": {"family": "DejaVu Sans", "size": 9.5},
    "text": {"color": INK},
    "svg": {"fonttype": "none", "hashsalt": "tas_fast"},
    "figure": {"facecolor": SURFACE, "titlesize": 11.5, "titleweight": "bold"},
    "axes": {
        "facecolor": "none",
        "edgecolor": MUTED,
        "linewidth": 0.8,
        "axisbelow": True,
        "labelcolor": MUTED,
        "titlelocation": "left",
        "titlecolor": MUTED,
        "titlesize": 9.5,
    },
    "axes.spines": {"top": False, "right": False},
    "grid": {"color": GRID, "linewidth": 0.7},
    "xtick": {"color": MUTED, "labelsize": 8.5},
    "ytick": {"color": MUTED, "labelsize": 8.5},
    "legend": {"frameon": False, "fontsize": 8.5},
    "lines": {"linewidth": 1.8},
    "patch": {"linewidth": 0},
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw and render with the plots' own settings, whatever matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: dict[Any, Any] = {
            f"{group}.{k}": value for group, values in _STYLE.items() for k, value in values.items()
        }
        matplotlib.rcParams.update(settings)
        yield


def new_figure(title: str, width: float, height: float) -> Any:
    """Return a figure of `width` x `height` inches with its title at the upper left, independent of pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.012, ha="left")
    return figure


def legend_above(axes: Any, columns: int = 4) -> None:
    """Place the legend between title and plot, where it covers no data."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, borderpad=0, columnspacing=1.4, handlelength=1.8
    )


def count_axis(axis: Any) -> None:
    """Write an axis of counts with units: 20 M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis.set_major_formatter(EngFormatter(sep=" "))
    axis.set_major_locator(MaxNLocator(5))


def epoch_axis(axis: Any) -> None:
    """Tick whole epochs only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=True))


def layer_ticks(axes: Any, places: Any, count: int) -> None:
    """Number the convolutions, as densely as fits a wide plot of `count` of them."""
    step = 1 if count <= 36 else 5 if count <= 110 else 10
    axes.set_xticks([place for place in places if place % step == 0])


def settle(figure: Any) -> None:
    """Lay the figure out once and for all: PNG and SVG are then alike, and drawn without doing it again."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def render_png(figure: Any) -> bytes:
    """Return the figure as a PNG of 144 dots per inch on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def render_svg(figure: Any, name: str, title: str) -> str:
    """Return the figure as an `<svg>` element to put into a page.

    Its colours are CSS variables with the palette as fallback, its text takes the page's font, and its ids start with
    `name`, so that several plots fit one page.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    width, height = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0]
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">'
    svg = head + svg[svg.index(">") + 1 :].strip()
    # An image's id is a hash of its pixels that nothing refers to; equal images would have equal ids.
    svg = re.sub(r'(<image\b[^>]*?) id="[^"]*"', r"\1", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", svg).replace("xlink:href=", "href=")
    svg = re.sub(r"(font|font-family): ([\d.]+px )?'DejaVu Sans'[^;\"]*", r"\1: \2var(--font, sans-serif)", svg)
    for color, variable in _PAGE_COLORS.items():
        svg = svg.replace(f": {color}", f": var({variable}, {color})")
    return svg
