"""Predictions on pictures and videos, by a checkpoint or an exported file.

All but :mod:`.inferencers` needs NumPy and OpenCV alone, :mod:`.exported` the runtime of its file as well.
"""

from __future__ import annotations
