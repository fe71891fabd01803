"""Training records: triplets drawn from a seed, rendered once to arrays on disk.

One record is one subject, one scene and one style, in seven pictures:
  target   the subject in the scene in the style
  plain    the same picture in no style (what "layout kept" starts from)
  content  the same subject in another pose, mostly on a plain background, in no style
  style    another subject in another scene, in the same style
  blend    the target half in its own style, half in that of its partner record (number ^ 1)
  foreign  an image that nothing of this world is in (`palettes`)
  tinted   the target in the style that answers it
Only pixels are stored: specs and words are drawn again from the seed.

    python -m training.data --out FOLDER        # renders what is missing
"""

from __future__ import annotations

import argparse
import json
import logging
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from . import palettes, world
from .command import positive, run_command
from .world.specs import Split

log = logging.getLogger(__name__)

KINDS = ("target", "plain", "content", "style", "blend", "foreign", "tinted")
LATENT_KINDS = ("target", "plain", "content", "style", "blend", "tinted")  # foreign images are only looked at
SQUARE = (128, 128)
# (height, width), multiples of 16. Tall ones are the harder: where things stand changes with every row. The last three
# are the wide ones on offer, which matter for layouts: a reference's distance is the picture's height and width.
FORMATS = (
    SQUARE, (144, 112), (112, 144), (160, 96), (96, 160), (160, 112), (176, 96), (128, 176), (128, 192), (128, 224),
)  # fmt: skip
PLAIN_TARGETS, PLAIN_CONTENTS = 0.1, 0.7  # share of pictures on a plain background
RECOLOURED_STYLES = 0.7  # share of training's styles in inks and papers of any hue
HELD_OUT_SEED = 10_000_000  # seeds of held-out records start here


@dataclass(frozen=True)
class Record:
    """The specs behind one record."""

    seed: int
    target: world.Picture
    content: world.Picture
    other: world.Picture  # what the style image shows
    style: world.Style

    def shown(self, kind: str) -> world.Picture:
        """What the picture of a kind shows."""
        return {"style": self.other, "content": self.content}.get(kind, self.target)

    def technique(self, kind: str) -> str:
        """The technique that the picture of a kind, but "foreign", is made in."""
        if kind == "tinted":
            return palettes.technique(self.seed)
        return world.NO_STYLE.technique if kind in ("plain", "content") else self.style.technique


@dataclass(frozen=True)
class Shard:
    """Consecutive records of one format; `first_seed` is even, so that partners (number ^ 1) lie in one shard."""

    name: str
    first_seed: int
    count: int
    height: int
    width: int
    split: Split
    settled: bool = False  # whether what no prompt tells hardly varies; in layouts an image tells it

    def record(self, number: int) -> Record:
        """The specs of the record `number` (0..count-1)."""
        return make_record(self.first_seed + number, self.split, self.settled)


@lru_cache(maxsize=65536)
def make_record(seed: int, split: Split, settled: bool = False) -> Record:
    """The record of a seed, its target and what its style image shows settled (`world.settle`) or not.

    Held out means identities that training never sees; at odd seeds the style's parameters and palette are new as well.
    """
    rng = np.random.default_rng(seed)
    subject, other = world.draw_subject(rng, split), world.draw_subject(rng, split)
    while other.kind == subject.kind:
        other = world.draw_subject(rng, split)
    style = world.draw_style(rng, split="held_out" if split == "held_out" and seed % 2 else "train")
    chance = np.random.default_rng([seed, 21])
    if split == "train" and chance.random() < RECOLOURED_STYLES:
        style = world.recolour(chance, style)
    scene = world.draw_scene(rng, "plain" if rng.random() < PLAIN_TARGETS else None)
    content_scene = world.draw_scene(rng, "plain" if rng.random() < PLAIN_CONTENTS else None)
    other_scene = world.draw_scene(rng)
    target = world.Picture(subject, world.draw_pose(rng), scene)
    content = world.Picture(subject, world.draw_pose(rng), content_scene)
    shown = world.Picture(other, world.draw_pose(rng), other_scene)
    if settled:
        target, shown = world.settle(target), world.settle(shown)
        content = replace(content, subject=target.subject)  # in any pose: so are the images that people bring
    return Record(seed, target, content, shown, style)


def render_record(record: Record, partner: Record, height: int, width: int) -> dict[str, np.ndarray]:
    """All but the foreign pictures, uint8 (H, W, 3); the content image is square in every format."""
    drawing = world.draw(record.target, height, width)
    target = world.stylise(drawing, record.style)
    second = world.stylise(drawing, partner.style)
    return {
        "target": target,
        "plain": world.stylise(drawing, world.NO_STYLE),
        "content": world.render(record.content, world.NO_STYLE, *SQUARE),
        "style": world.render(record.other, record.style, height, width),
        "blend": ((target.astype(np.uint16) + second) // 2).astype(np.uint8),
    }


def render_foreign(record: Record, height: int, width: int) -> dict[str, np.ndarray]:
    """The foreign image, square in every format, and the target in the style that answers it, uint8 (H, W, 3)."""
    foreign = palettes.draw_image(record.seed)
    style = palettes.style_of(foreign, record.technique("tinted"), record.style.variant)
    return {"foreign": foreign, "tinted": world.render(record.target, style, height, width)}


def plan(square: int, other: int, held_out: int, per_shard: int = 1024) -> list[Shard]:
    """The shards: `square` ones of 128 x 128, `other` of each further format, `held_out` ones to measure on.

    Two of three square ones are settled, half of the others.
    """
    shapes = [(SQUARE, number % 3 != 2) for number in range(square)]
    shapes += [(shape, settled) for shape in FORMATS[1:] for _ in range(other) for settled in (True, False)]
    shards = [
        Shard(f"train-{number:03d}", number * per_shard, per_shard, *shape, "train", settled)
        for number, (shape, settled) in enumerate(shapes)
    ]
    shards += [
        Shard(f"held_out-{number:03d}", HELD_OUT_SEED + number * per_shard, per_shard, *SQUARE, "held_out", True)
        for number in range(held_out)
    ]
    return shards


def picture_path(folder: Path, shard: Shard, kind: str) -> Path:
    """Where the pictures of one kind of a shard lie: uint8 (count, H, W, 3)."""
    return folder / shard.name / f"{kind}.npy"


def open_pictures(folder: Path, shard: Shard, kind: str) -> np.ndarray:
    """Memory map, uint8 (count, H, W, 3)."""
    return np.load(picture_path(folder, shard, kind), mmap_mode="r")


def list_shards(folder: Path, split: Split | None = None) -> list[Shard]:
    """The finished shards below a folder, by name."""
    shards = [Shard(**json.loads(path.read_text())) for path in sorted(folder.glob("*/shard.json"))]
    return [shard for shard in shards if split is None or shard.split == split]


def render_shard(folder: Path, shard: Shard) -> None:
    """Render one shard; the file shard.json, written last, says that it is complete."""
    place = folder / shard.name
    place.mkdir(parents=True, exist_ok=True)
    shapes = {kind: SQUARE if kind in ("content", "foreign") else (shard.height, shard.width) for kind in KINDS}
    arrays = {
        kind: np.lib.format.open_memmap(
            picture_path(folder, shard, kind), mode="w+", dtype=np.uint8, shape=(shard.count, *shapes[kind], 3)
        )
        for kind in KINDS
    }
    for number in range(shard.count):
        record, partner = shard.record(number), shard.record(number ^ 1)
        pictures = render_record(record, partner, shard.height, shard.width)
        pictures |= render_foreign(record, shard.height, shard.width)
        for kind, picture in pictures.items():
            arrays[kind][number] = picture
    for array in arrays.values():
        array.flush()
    (place / "shard.json").write_text(json.dumps(asdict(shard)))


def render(folder: Path, shards: list[Shard], processes: int) -> None:
    """Render all shards that are not there yet."""
    done = {shard.name for shard in list_shards(folder)}
    missing = [shard for shard in shards if shard.name not in done]
    with ProcessPoolExecutor(processes) as pool:
        jobs = {shard.name: pool.submit(render_shard, folder, shard) for shard in missing}
        for number, (name, job) in enumerate(jobs.items(), 1):
            job.result()
            log.info("rendered %s (%d of %d)", name, number, len(jobs))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Render the training records.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--square", type=positive, default=12, help="shards of 128 x 128")
    parser.add_argument("--other", type=int, default=1, help="pairs of shards of each further format")
    parser.add_argument("--held-out", type=int, default=1, help="shards to measure on")
    parser.add_argument("--per-shard", type=positive, default=1024, help="records of each, an even number")
    parser.add_argument("--processes", type=positive, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    shards = plan(arguments.square, arguments.other, arguments.held_out, arguments.per_shard)
    render(arguments.out / "records", shards, arguments.processes)


if __name__ == "__main__":
    run_command(main)
