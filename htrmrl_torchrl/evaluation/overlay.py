"""The caption over a picture of a trial: task, step, episode, success, and success of the episodes so far.

+--------------------------------+
| task                step 40/500|   dark band
|          SUCCESS ✓             |   from the step of success to the episode's end, with a green frame
| episode 3 of 11 (adapting)     |   dark band
|▇▇▇ ▇▇▇ ▇▇  ___ ___ ___ ___     |   one segment per episode: green after success, grey before
+--------------------------------+
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from htrmrl_torchrl.envs.lanes import Picture
from htrmrl_torchrl.extras import require

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

MIN_SIZE = 128  # below, the text cannot be read

_GREEN = (46, 204, 113)
_WHITE = (255, 255, 255)
_MUTED = (205, 210, 216)
_PLAYED = (150, 156, 164)
_AHEAD = (70, 76, 84)
_BAND = (12, 16, 22, 205)  # red, green, blue, opacity


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What to write; ``success`` has one entry per episode so far, including the current one."""

    task: str
    step: int
    horizon: int
    adaptation_episodes: int
    evaluation_episodes: int
    success: tuple[bool, ...]

    @property
    def episode(self) -> str:
        """The current episode in words: ``"episode 3 of 11 (adapting)"``."""
        number, total = len(self.success), self.adaptation_episodes + self.evaluation_episodes
        return f"episode {number} of {total} ({'adapting' if number <= self.adaptation_episodes else 'evaluating'})"


def draw_caption(picture: Picture, caption: Caption) -> Picture:
    """A copy of the picture [H, W, 3] with the caption over it; text shrinks until it fits. Raises ValueError for
    pictures below 128 pixels in height or width.
    """
    height, width = picture.shape[:2]
    if min(height, width) < MIN_SIZE:
        raise ValueError(f"A caption takes at least {MIN_SIZE} x {MIN_SIZE} pixels, received {height} x {width}.")
    require("video", "PIL")
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image, "RGBA")
    unit = min(height, width) // 64  # 4 pixels in a picture of 256
    band, bar = 6 * unit, unit + 1
    margin, middle = 2 * unit, 3 * unit
    draw.rectangle((0, 0, width, band - 1), fill=_BAND)
    draw.rectangle((0, height - band - bar - unit, width, height), fill=_BAND)
    step = f"step {caption.step}/{caption.horizon}"
    reserved = _font(3 * unit).getlength(f"step {caption.horizon}/{caption.horizon}")  # so that the name does not move
    draw.text((width - margin, middle), step, font=_font(3 * unit), fill=_MUTED, anchor="rm")
    _fitted(draw, (margin, middle), caption.task, room=width - reserved - 3 * margin, size=7 * unit // 2, fill=_WHITE)
    lower = height - bar - unit - middle
    _fitted(draw, (margin, lower), caption.episode, room=width - 2 * margin, size=7 * unit // 2, fill=_WHITE)
    _draw_progress(draw, caption, left=margin, right=width - margin, top=height - bar - unit, bottom=height - unit - 1)
    if caption.success[-1]:
        _draw_success(draw, width=width, height=height, top=band + 2 * unit, unit=unit)
    return np.array(image)


def _fitted(
    draw: "ImageDraw.ImageDraw",
    position: tuple[float, float],
    text: str,
    *,
    room: float,
    size: int,
    fill: tuple[int, int, int],
) -> None:
    """Left-aligned, vertically centred text in the largest size that fits into ``room`` pixels."""
    while size > 6 and _font(size).getlength(text) > room:
        size -= 1
    draw.text(position, text, font=_font(size), fill=fill, anchor="lm")


def _draw_progress(
    draw: "ImageDraw.ImageDraw", caption: Caption, *, left: int, right: int, top: int, bottom: int
) -> None:
    """One segment per episode; the current one is filled up to the current step."""
    total = caption.adaptation_episodes + caption.evaluation_episodes
    edges = np.linspace(left, right + 1, total + 1)
    gap = 2 if edges[1] - edges[0] >= 6 else 0
    for episode in range(total):
        start, end = round(edges[episode]), round(edges[episode + 1]) - 1 - gap
        draw.rectangle((start, top, end, bottom), fill=_AHEAD)
        if episode < len(caption.success):
            present = episode == len(caption.success) - 1
            share = caption.step / caption.horizon if present else 1.0
            if share > 0:
                colour = _GREEN if caption.success[episode] else _WHITE if present else _PLAYED
                draw.rectangle((start, top, start + round(share * (end - start)), bottom), fill=colour)


def _draw_success(draw: "ImageDraw.ImageDraw", *, width: int, height: int, top: int, unit: int) -> None:
    draw.rectangle((0, 0, width - 1, height - 1), outline=_GREEN, width=max(2, unit // 2))
    font, text = _font(7 * unit // 2), "SUCCESS"
    tick = 3 * unit  # width of the check mark
    badge = font.getlength(text) + tick + 5 * unit
    left, middle = (width - badge) / 2, top + 3 * unit
    draw.rounded_rectangle((left, top, left + badge, top + 6 * unit), radius=3 * unit, fill=_GREEN)
    draw.text((left + 2 * unit, middle), text, font=font, fill=(8, 40, 20), anchor="lm")
    right = left + badge - 2 * unit
    mark = [(right - tick, middle), (right - 0.62 * tick, middle + 0.36 * tick), (right, middle - 0.42 * tick)]
    draw.line(mark, fill=(8, 40, 20), width=max(2, 3 * unit // 4), joint="curve")


@cache
def _font(size: int) -> "ImageFont.FreeTypeFont":
    """The font that Pillow brings along."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("This Pillow has no FreeType and so no font of any size; install one of Pillow's wheels.")
    return font
