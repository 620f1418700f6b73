"""What all pages of HTML share: the shell with its style and script, tables, plots, the gallery, and how it was made.

A page is one file. It asks nobody for anything, also when it is opened from a disk: style, script, drawings and images
stand in it, and its own policy forbids everything else. Every string from outside is escaped, and none stands inside
the script.
"""

from tokenflex.pages.gallery import Card, CardImage, Gallery, Overlay
from tokenflex.pages.opening import Compared, Score, opening
from tokenflex.pages.origin import how_made
from tokenflex.pages.plot import Plot, Series, drawn_plot, points
from tokenflex.pages.rendering import rendered
from tokenflex.pages.tables import Cell, Column, Row, Table, numbered

__all__ = [
    "Card",
    "CardImage",
    "Cell",
    "Column",
    "Compared",
    "Gallery",
    "Overlay",
    "Plot",
    "Row",
    "Score",
    "Series",
    "Table",
    "drawn_plot",
    "how_made",
    "numbered",
    "opening",
    "points",
    "rendered",
]
