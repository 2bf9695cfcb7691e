"""Images, sounds and videos from files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from crossfuse.core.media_files import read_image, read_sound, read_video
from crossfuse.errors import InputError

SAMPLES = np.array([[0, 2000], [1000, 3000], [-4000, -4000], [32767, 32767]], np.int16)


def write_wav(path: Path, width: int = 2, rate: int = 8000) -> Path:
    wide = SAMPLES.astype("<i4") * 65536
    data = {
        1: (SAMPLES // 256 + 128).astype(np.uint8),
        2: SAMPLES,
        3: wide.reshape(-1, 1).view(np.uint8)[:, 1:],
        4: wide,
    }[width]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data.tobytes())
    return path


def test_an_image_in_three_channels(tmp_path: Path) -> None:
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(tmp_path / "grey.png")
    image = read_image(tmp_path / "grey.png")
    assert (image.mode, image.size) == ("RGB", (6, 4))
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(InputError, match=r"no\.png"):
        read_image(tmp_path / "no.png")


def test_an_image_upright_and_on_white(tmp_path: Path) -> None:
    clear = np.zeros((4, 6, 4), np.uint8)
    clear[:, 3:] = (10, 20, 30, 255)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    found = np.asarray(read_image(tmp_path / "clear.png"))
    assert (found[:, :3] == 255).all()
    assert (found[:, 3:] == (10, 20, 30)).all()
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned by a quarter
    Image.fromarray(found).save(tmp_path / "turned.png", exif=turned)
    upright = np.asarray(read_image(tmp_path / "turned.png"))
    np.testing.assert_array_equal(upright, np.rot90(found, -1))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_sound_as_one_channel(tmp_path: Path, width: int) -> None:
    sound = read_sound(write_wav(tmp_path / "a.wav", width), 8000)
    np.testing.assert_allclose(
        sound, SAMPLES.mean(1) / 32768, atol=max(1e-7, 1.1 / 2 ** (8 * width - 1))
    )


def test_a_sound_at_another_rate_lies_on_the_same_line(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav")
    np.testing.assert_allclose(read_sound(path, 16000)[::2], read_sound(path, 8000), atol=1e-6)
    assert read_sound(path, None).shape == (4,)


def test_samples_and_what_is_no_sound(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((1, 5)))
    assert read_sound(tmp_path / "a.npy", 16000).tolist() == [1.0] * 5
    np.save(tmp_path / "b.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "c.wav").write_text("no sound")
    for name in ("b.npy", "c.wav", "none.wav"):
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            read_sound(tmp_path / name, 16000)


def test_frames_of_a_folder_and_of_a_file(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), (60 * i, 0, 0)) for i in range(3)]
    folder = tmp_path / "frames"
    folder.mkdir()
    for i, frame in enumerate(frames):
        frame.save(folder / f"{i}.png")
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert [f.getpixel((0, 0)) for f in read_video(folder)] == [(0, 0, 0), (60, 0, 0), (120, 0, 0)]
    assert len(read_video(tmp_path / "a.gif")) == 3
    (tmp_path / "b.mp4").write_bytes(b"no frames")
    with pytest.raises(InputError, match="a folder of images"):
        read_video(tmp_path / "b.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no frames"):
        read_video(tmp_path / "empty")
