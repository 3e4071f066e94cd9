"""Speech and music that ship with packages: recordings of read speech at 16 kHz, and single notes of instruments."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.public_cases import packages

Sound = NDArray[np.float32]
RATE = 16_000
CALIBRATED = ("*-0870.wav", "*-0880.wav", "*-0890.wav", "input_4_16k.wav", "cards/001.wav", "cards/003.wav")
TESTED = ("*-0920.wav", "*-0930.wav", "input_2_16k.wav", "cards/005.wav", "cards/004.wav")


def talk(cache: Path, seconds: float, seed: int, *, tested: bool) -> Sound:
    """Recordings one after the other, at many levels, with pauses and noise between and under them."""
    rng = np.random.default_rng(seed)
    recordings = [_read(_only(cache, name)) for name in (TESTED if tested else CALIBRATED)]
    pieces, length = [], 0
    while length < seconds * RATE:
        speech = recordings[int(rng.integers(len(recordings)))]
        start = int(rng.integers(0, len(speech) // 2))
        piece = speech[start : start + int(rng.uniform(1, 4) * RATE)] * rng.uniform(0.2, 1.2)
        pause = np.zeros(int(rng.uniform(0.2, 1.5) * RATE), dtype=np.float32)
        pieces += [piece, pause]
        length += len(piece) + len(pause)
    sound = np.concatenate(pieces)[: int(seconds * RATE)]
    levels = np.repeat(rng.choice([0.0002, 0.002, 0.01], len(sound) // RATE + 1), RATE)[: len(sound)]
    return np.asarray((sound + levels * rng.standard_normal(len(sound))).clip(-1, 1), dtype=np.float32)


def _only(cache: Path, name: str) -> Path:
    return packages.SPEECH.file(cache, f"test/data/**/{name}")


def _read(path: Path) -> Sound:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2), path
        return _floats(file.readframes(file.getnframes()))


def _floats(pcm: bytes) -> Sound:
    """16-bit samples as shares of the loudest."""
    return np.asarray(np.frombuffer(pcm, "<i2") / np.float32(32768), dtype=np.float32)


# -- notes -------------------------------------------------------------------------------------

MUSIC_RATE = 22_050


def music(cache: Path, count: int, length: int, seed: int, *, tested: bool) -> Sound:
    """`count` clips (count, length) of chords, played by recorded notes; every fourth instrument is for the test."""
    rng = np.random.default_rng(seed)
    notes = [note for n, note in enumerate(_notes(cache)) if (n % 4 == 3) == tested]
    clips = np.zeros((count, length), dtype=np.float32)
    for clip in clips:
        for _ in range(int(rng.integers(4, 14))):
            sound = _shifted(notes[int(rng.integers(len(notes)))], rng)
            start = int(rng.integers(0, length - MUSIC_RATE // 4))
            part = sound[: length - start]
            clip[start : start + len(part)] += part
        clip += rng.normal(0, 0.001, length).astype(np.float32)
        clip /= max(1.0, float(np.abs(clip).max()))
    return clips


def _shifted(note: tuple[int, int, Sound], rng: np.random.Generator) -> Sound:
    """The note at another pitch and loudness, with a short end, by reading it faster or slower."""
    rate, _, sound = note
    speed = rate / MUSIC_RATE * 2 ** (rng.integers(-7, 8) / 12)
    places = np.arange(0, len(sound) - 1, speed)
    places = places[: int(rng.uniform(0.2, 1.2) * MUSIC_RATE)]
    played = np.interp(places, np.arange(len(sound)), sound).astype(np.float32)
    fade = min(len(played), 800)
    played[len(played) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    return np.asarray(played * rng.uniform(0.1, 0.5))


def _notes(cache: Path) -> list[tuple[int, int, Sound]]:
    """(rate, pitch, sound) of every note longer than a fifth of a second (SoundFont 2.04, sections 5 and 7.10)."""
    data = packages.SOUNDFONT.file(cache, "**/TimGM6mb.sf2").read_bytes()
    chunks = {}
    for name in (b"smpl", b"shdr"):
        at = data.index(name)
        (size,) = struct.unpack_from("<I", data, at + 4)
        chunks[name] = data[at + 8 : at + 8 + size]
    pcm, notes = _floats(chunks[b"smpl"]), []
    for at in range(0, len(chunks[b"shdr"]) - 46, 46):
        start, end, _, _, rate, pitch = struct.unpack_from("<5IB", chunks[b"shdr"], at + 20)
        if end - start > rate // 5 and 36 <= pitch <= 84:
            notes.append((rate, pitch, pcm[start:end]))
    return notes
