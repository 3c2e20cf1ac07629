"""Trains and tests backbones alike, and puts what came out beside the published figures."""

from __future__ import annotations
