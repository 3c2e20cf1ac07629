"""Generates the demo's data set: the same scenes in COCO's and in ADE20K's own layout.

A scene is a landscape of textured sky, grass and water with unlabelled grey posts and four to nine textured
objects of six classes, which hide one another. The same settings give the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as mask_utils

# Classes of ADE20K with their labels in its annotation images (0 = unlabelled): ADE20KDataset selects them by name.
STUFF = dict(sky=3, grass=10, water=22)
THINGS = dict(ball=120, box=42, plaything=109, flower=67, tent=115, fan=140)

# Square root of an object's area in pixels of a 640 x 480 image: COCO's small (< 32), medium and large (> 96).
SIZES = ((20, 32), (32, 96), (96, 180))
SIZE_PROBS = (0.25, 0.4, 0.35)
MIN_VISIBLE = 0.4  # objects of which less than this share of the area can be seen are left out of the scene

COCO_DIR = 'coco'
ADE_DIR = 'ade/ADEChallengeData2016'
_STAMP = 'dataset.json'
_GENERATOR = 'mmefficientmod.synthetic'  # in the stamp of every data set that was made so far

# Two RGB colours per class of things; the texture below mixes them.
_COLORS = dict(
    ball=((215, 45, 45), (245, 235, 225)),
    box=((185, 125, 65), (105, 60, 25)),
    plaything=((250, 205, 40), (55, 45, 50)),
    flower=((165, 45, 190), (240, 185, 245)),
    tent=((245, 115, 20), (250, 245, 240)),
    fan=((30, 35, 130), (225, 235, 245)),
)

# Share of the second colour at object coordinates (u, v) in [-1, 1].
_TEXTURES = dict(
    ball=lambda u, v: np.sin(7 * u) > 0.3,
    box=lambda u, v: (np.sin(11 * v) > 0.8) | (np.maximum(abs(u), abs(v)) > 0.68),
    plaything=lambda u, v: np.sin(6 * np.arctan2(v, u)) > 0.4,
    flower=lambda u, v: np.clip(1 - 1.5 * np.hypot(u, v), 0, 1),
    tent=lambda u, v: np.sin(9 * v) > 0.4,
    fan=lambda u, v: np.sin(9 * u) * np.sin(9 * v) > 0.25,
)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    radius, angle = np.hypot(u, v), np.arctan2(u, -v)
    angle = abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)  # folded into half a point of the star
    dx, dy = 0.45 * np.cos(np.pi / 5) - 1, 0.45 * np.sin(np.pi / 5)  # edge from the point to the notch
    return (dy * (radius * np.cos(angle) - 1) - dx * radius * np.sin(angle)) / np.hypot(dx, dy)


# Signed distance to the outline (negative inside) at object coordinates (u, v).
_SHAPES = dict(
    ball=lambda u, v: np.hypot(u, v) - 1,
    box=lambda u, v: np.maximum(abs(u), abs(v)) - 0.85,
    plaything=lambda u, v: abs(np.hypot(u, v) - 0.7) - 0.3,
    flower=_star,
    tent=lambda u, v: np.maximum(v - 0.8, (1.8 * abs(u) - 0.75 * (v + 1)) / 1.95),
    fan=lambda u, v: np.minimum(np.maximum(abs(u) - 1, abs(v) - 0.36), np.maximum(abs(u) - 0.36, abs(v) - 1)),
)


class Scene(NamedTuple):
    """One scene: its image and both kinds of annotations."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    semantic: np.ndarray  # (H, W) uint8, ADE20K's labels, 0 = unlabelled
    instances: list[tuple[str, np.ndarray]]  # (class, (H, W) bool mask of the visible pixels)


@lru_cache
def _unit_area(name: str) -> float:
    """Area of a shape in object coordinates."""
    axis = np.linspace(-1, 1, 401)
    return float((_SHAPES[name](*np.meshgrid(axis, axis)) < 0).mean() * 4)


def _noise(rng: np.random.Generator, width: int, height: int, columns: int, rows: int) -> np.ndarray:
    """Smooth noise of shape (height, width) and about [-1, 1] with rows x columns cells."""
    cells = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    return cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)


def _background(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws the landscape: image (H, W, 3) float32 RGB and labels (H, W) uint8, 0 on the posts."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float32) / width, np.arange(height, dtype=np.float32) / height)
    horizon = rng.uniform(0.25, 0.5) + 0.03 * np.sin(rng.uniform(4, 10) * x + rng.uniform(0, 6))
    bank = rng.uniform(0.25, 0.75) + rng.uniform(-0.6, 0.6) * (y - horizon) + 0.03 * np.sin(12 * y + rng.uniform(0, 6))
    is_water = (x < bank) == (rng.random() < 0.5)
    kind = np.where(y < horizon, 0, np.where(is_water, 2, 1))

    clouds = _noise(rng, width, height, 6, 8) + 0.5 * _noise(rng, width, height, 14, 20)
    blades = _noise(rng, width, height, width // 3, height // 6) + 0.4 * _noise(rng, width, height, 5, 4)
    waves = np.sin(2 * np.pi * (14 * y + 0.6 * _noise(rng, width, height, 6, 12)))
    sky = np.array([120, 175, 235]) + (y / horizon * 40 + 45 * np.clip(clouds, -0.3, 1))[..., None]
    grass = np.array([85, 140, 60]) + blades[..., None] * (30, 35, 20)
    water = np.array([40, 110, 150]) + waves[..., None] * (12, 18, 20)
    image = np.choose(kind[..., None], (sky, grass, water)) * rng.uniform(0.8, 1.1)
    labels = np.array(list(STUFF.values()), np.uint8)[kind]

    for _ in range(rng.integers(0, 3)):
        left, top = rng.uniform(0, 0.97), rng.uniform(0.1, 0.5)
        post = (x >= left) & (x < left + rng.uniform(0.012, 0.025)) & (y > top) & (y < top + 0.45)
        image[post] = rng.uniform(90, 150)
        labels[post] = 0
    return image, labels


def make_scene(rng: np.random.Generator, width: int, height: int) -> Scene:
    """Draws one scene.

    Args:
        rng: Source of all randomness.
        width, height: Size of the image in pixels.
    """
    image, semantic = _background(rng, width, height)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    scale = (width * height / (640 * 480)) ** 0.5
    hidden = np.zeros((height, width), bool)
    objects, centers = [], []
    # From front to back, so that what an object hides is known when the next one is placed.
    for _ in range(rng.integers(4, 10)):
        name = list(THINGS)[rng.integers(len(THINGS))]
        side = scale * rng.uniform(*SIZES[rng.choice(len(SIZES), p=SIZE_PROBS)])
        radius = side / _unit_area(name) ** 0.5
        center = rng.uniform((0.05, 0.15), (0.95, 0.95)) * (width, height)
        if centers and rng.random() < 0.4:  # behind an earlier one
            other, other_radius = centers[rng.integers(len(centers))]
            turn = rng.uniform(0, 2 * np.pi)
            center = other + 0.75 * (radius + other_radius) * np.array([np.cos(turn), np.sin(turn)])
        tilt = rng.uniform(-0.4, 0.4)
        dx, dy = (x - center[0]) / radius, (y - center[1]) / radius
        u, v = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx
        distance = _SHAPES[name](u, v) * radius
        shape = distance < 0
        visible = shape & ~hidden
        colors = np.array(_COLORS[name]) * rng.uniform(0.8, 1.1) + rng.uniform(-15, 15, (2, 3))
        if visible.sum() < MIN_VISIBLE * side**2:
            continue
        hidden |= shape
        centers.append((center, radius))
        mix = np.asarray(_TEXTURES[name](u, v), float)[..., None]
        texture = ((1 - mix) * colors[0] + mix * colors[1]) * (1 - 0.15 * np.clip(u + v, -1, 1))[..., None]
        objects.append((name, visible, texture, np.clip(0.5 - distance, 0, 1)[..., None]))

    for name, visible, texture, alpha in reversed(objects):
        image = (1 - alpha) * image + alpha * texture
        semantic[visible] = THINGS[name]
    image = image + rng.normal(0, 4, image.shape)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), semantic, [obj[:2] for obj in objects])


def _coco_annotation(mask: np.ndarray) -> dict:
    """Run-length mask, box (x, y, w, h) and area (pixels) in COCO's form."""
    rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return dict(
        segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
        bbox=mask_utils.toBbox(rle).tolist(),
        area=float(mask_utils.area(rle)),
        iscrowd=0,
    )


def _write_split(root: Path, split: str, first_id: int, count: int, size: tuple[int, int], seed: int) -> None:
    """Writes `count` scenes of a split ('train' or 'val') in both layouts under `root`."""
    width, height = size
    coco_images = root / COCO_DIR / f'{split}2017'
    coco_file = root / COCO_DIR / 'annotations' / f'instances_{split}2017.json'
    ade_split = dict(train='training', val='validation')[split]
    ade_images, ade_maps = root / ADE_DIR / 'images' / ade_split, root / ADE_DIR / 'annotations' / ade_split
    for folder in (coco_images, coco_file.parent, ade_images, ade_maps):
        folder.mkdir(parents=True, exist_ok=True)

    category_ids = {name: i for i, name in enumerate(THINGS, 1)}
    images, annotations = [], []
    for index in range(count):
        # A generator of its own for every scene: a larger data set starts with the smaller one's scenes.
        scene = make_scene(np.random.default_rng((seed, split == 'val', index)), width, height)
        image_id = first_id + index
        coco_image = coco_images / f'{image_id:012d}.jpg'
        ade_name = f'ADE_{split}_{index + 1:08d}'
        cv2.imwrite(str(coco_image), scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        shutil.copyfile(coco_image, ade_images / f'{ade_name}.jpg')
        cv2.imwrite(str(ade_maps / f'{ade_name}.png'), scene.semantic)
        images.append(dict(id=image_id, file_name=coco_image.name, width=width, height=height))
        for name, mask in scene.instances:
            annotations.append(
                dict(
                    id=first_id * 100 + len(annotations),
                    image_id=image_id,
                    category_id=category_ids[name],
                    **_coco_annotation(mask),
                )
            )
    categories = [dict(id=i, name=name, supercategory='thing') for name, i in category_ids.items()]
    coco_file.write_text(
        json.dumps(
            dict(
                info=dict(description='mmefficientmod demo scenes', version='1.0'),
                licenses=[],
                images=images,
                annotations=annotations,
                categories=categories,
            )
        )
    )


def make_dataset(
    out: str | Path, train_images: int = 240, val_images: int = 60, size: tuple[int, int] = (320, 240), seed: int = 0
) -> bool:
    """Writes the data set to `out`: `coco/` in COCO's layout and `ade/ADEChallengeData2016/` in ADE20K's.

    The folder appears under its name only when it is complete. A complete one with the same settings is kept.

    Args:
        out: Folder to make.
        train_images: Number of scenes in the training split.
        val_images: Number of scenes in the validation split.
        size: Width and height of the images in pixels, at least 64 each.
        seed: Seed of the scenes, not negative.

    Returns:
        Whether the data set was made (False: it was there already).

    Raises:
        ValueError: For settings outside these ranges.
        FileExistsError: If `out` holds something else.
    """
    if min(train_images, val_images) < 1 or min(size) < 64 or seed < 0:
        raise ValueError(
            'the data set needs at least one image per split, images of 64 x 64 pixels or more and a '
            f'seed of 0 or more, got {train_images} and {val_images} images of {size[0]} x {size[1]}, '
            f'seed {seed}'
        )
    out = Path(out)
    settings = dict(train_images=train_images, val_images=val_images, size=size, seed=seed)
    stamp = json.dumps(dict(generator=f'{_GENERATOR} 1', **settings))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = (out / _STAMP).read_text(errors='replace') if (out / _STAMP).is_file() else ''
        if found == stamp:
            return False
        what = f'a data set with other settings, {found},' if _GENERATOR in found else 'something else'
        raise FileExistsError(f'{out} holds {what} already; name another folder or delete this one')
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.name}-') as folder:
        draft = Path(folder, 'data')
        _write_split(draft, 'train', 1, train_images, size, seed)
        _write_split(draft, 'val', train_images + 1, val_images, size, seed)
        (draft / _STAMP).write_text(stamp)
        os.replace(draft, out)
    return True
