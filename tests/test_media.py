"""Videos are read back from their files: number of pictures, size, speed and content."""

import io

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image

from htrmrl_torchrl.media import encode_gif, write_frames


def shades(number, height=32, width=48):
    """Grey pictures, each brighter than the one before, with a red left half."""
    frames = np.empty((number, height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[:] = 20 + 18 * index
        frame[:, : width // 2] = (200, 20, 20)
    return frames


@pytest.mark.parametrize(("height", "width"), [(32, 48), (130, 256), (33, 47)])
def test_an_mp4_has_all_pictures_in_their_size(tmp_path, height, width):
    frames = shades(12, height, width)
    path = write_frames(frames, tmp_path / "new" / "trial.mp4", fps=16)
    reader = imageio.get_reader(path, format="FFMPEG")
    assert reader.count_frames() == 12
    assert reader.get_meta_data()["fps"] == 16
    assert reader.get_meta_data()["codec"] == "h264" and "yuv420p" in reader.get_meta_data()["pix_fmt"]
    read = np.stack(list(reader.iter_data()))
    reader.close()
    assert read.shape == (12, height + height % 2, width + width % 2, 3)  # odd sides are completed
    # Compression loses a little; half of each picture would be wrong by 180 if colours were exchanged.
    difference = np.abs(read[:, :height, :width].astype(int) - frames)
    assert difference.mean() < 4


def test_a_gif_has_all_pictures_and_repeats(tmp_path):
    frames = shades(7)
    gif = Image.open(write_frames(frames, tmp_path / "trial.GIF", fps=8))
    assert gif.format == "GIF" and gif.n_frames == 7 and gif.info["loop"] == 0
    for index, frame in enumerate(frames):
        gif.seek(index)
        assert gif.info["duration"] == 120  # 125 ms, in hundredths of a second
        assert np.abs(np.asarray(gif.convert("RGB"), np.int16) - frame).max() <= 8  # 256 colours for all


def test_equal_pictures_of_a_gif_take_their_time():
    gif = Image.open(io.BytesIO(encode_gif(np.repeat(shades(2), 3, axis=0), fps=10)))
    durations = []
    for index in range(gif.n_frames):
        gif.seek(index)
        durations.append(gif.info["duration"])
    assert durations == [300, 300]


@pytest.mark.parametrize("name", ["trial.avi", "trial"])
def test_other_suffixes_are_refused_with_those_allowed(tmp_path, name):
    with pytest.raises(ValueError, match=rf"ends in \.mp4 or \.gif, received '{name}'"):
        write_frames(shades(2), tmp_path / name, fps=10)
    assert not list(tmp_path.iterdir())


def test_what_is_no_video_writes_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"received float64 \[2, 32, 48, 3\]"):
        write_frames(shades(2).astype(float), tmp_path / "trial.mp4", fps=10)
    assert not list(tmp_path.iterdir())
