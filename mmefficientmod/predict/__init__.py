"""Predictions on many images and videos, with a checkpoint or an exported model; needs only NumPy and OpenCV."""

from __future__ import annotations
