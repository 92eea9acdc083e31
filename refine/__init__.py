"""REFINE: reinforced fast weights with next-sequence prediction (arXiv 2602.16704).

The rooms, from the ground up: ``settings`` and ``ops``; ``models``; ``objective`` and ``data``;
``evaluation``; ``training``; ``tracking`` and ``services``; ``cli`` on top. Imports only go down.
"""

__version__ = "0.1.0"
