"""Axes: which axis of an array is what, said by one word of letters, inferred where its shape leaves one reading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from .errors import Unsuitable

__all__ = ["Axes", "choose", "in_words", "parse"]

Axes = str | Sequence[str] | None

NAMES = {"N": "items", "S": "frames", "C": "channels", "H": "height", "W": "width"}
LETTERS = "N (items), S or T (frames), C (channels), H (height) and W (width)"
SAY = "data.source.axes={} on the command line"
# The orders that arrays are kept in, by their number of axes; those of a film or a picture alone come last.
CONVENTIONS = {
    3: ("NHW", "SHW", "HWC"),
    4: ("NCHW", "NHWC", "NSHW", "SNHW", "SHWC", "SCHW"),
    5: ("NSCHW", "NSHWC", "SNCHW", "SNHWC", "NCSHW"),
}
THIN = 5  # sides of fewer pixels are more likely channels or frames
FEW = 4  # channels: stereo pairs, colors, colors and how opaque they are


def parse(axes: Axes) -> tuple[str, ...]:
    """One word or several, as (words of N, S, C, H and W); none where nothing is said.

    Raises:
        ValueError: a word has other letters, one twice, or no height and width.

    Example:
        >>> parse("nthwc")
        ('NSHWC',)
    """
    words = [] if axes is None else [*axes] if isinstance(axes, Sequence) and not isinstance(axes, str) else [axes]
    parsed = []
    for word in words:
        letters = word.strip().upper().replace("T", "S") if isinstance(word, str) else ""
        if not set("HW") <= set(letters) <= set(NAMES) or len(set(letters)) < len(letters):
            raise ValueError(
                f"axes is {word!r}; expected one letter for each axis of the array, in its order, of {LETTERS}, with "
                "H and W among them, such as NSHWC."
            )
        parsed.append(letters)
    return tuple(parsed)


def choose(
    shape: Sequence[int],
    words: Sequence[str],
    n_frames: int | None = None,
    readings: Sequence[str] = (),
    span: int | None = None,
) -> str:
    """The word for an array: the one that was said, or the one that its shape leaves.

    What is presumed of an array of which nothing is said: frames of at least 5 x 5 pixels where it can be read so,
    sequences of at least two frames and, unless their length is given, no fewer sequences than frames.

    Args:
        shape: of the array.
        words: of which the one with as many letters as there are axes is meant.
        n_frames: of a sequence, where sequences are wanted: leaves the readings with as many.
        readings: words that its format leaves; none: the orders that arrays are commonly kept in.
        span: frames from the first to the last of a window, where films are to be cut into windows: leaves the readings
            with as many frames at least, and a film alone is one of them.

    Raises:
        Unsuitable: no word, or several, say what the axes are.

    Example:
        >>> choose((64, 20, 12, 12, 3), [])
        'NSHWC'
        >>> choose((20, 64, 1, 32, 32), [], n_frames=20)
        'SNCHW'
    """
    shape = tuple(shape)
    if words:
        fitting = [word for word in words if len(word) == len(shape)]
        if len(fitting) != 1:
            raise Unsuitable(
                f"the array has shape {shape}, but axes is {' or '.join(words)}; expected one word of {len(shape)} "
                "letters, one for each axis."
            )
        return fitting[0]
    candidates = [*readings] if readings else _plausible(shape, n_frames, span)
    if span is not None:
        films = [word for word in candidates if "S" in word]
        candidates = [word for word in films if size(shape, word, "S") >= span] or films or candidates
    elif n_frames is not None:
        candidates = [word for word in candidates if size(shape, word, "S") == n_frames and "S" in word] or candidates
    # Axes of size one carry no order: words that differ in nothing else are one reading.
    unlike = {_order(shape, word): word for word in reversed(candidates)}
    if len(unlike) == 1:
        return next(iter(unlike.values()))
    if not unlike:
        example = next(iter(CONVENTIONS.get(len(shape), ("NSHWC",))))
        raise Unsuitable(
            f"the array has shape {shape}; expected images (N, height, width), sequences (N, frame, channel, height, "
            f"width), or a word that says what its axes are, by the letters {LETTERS}, such as axes={example} "
            f"({SAY.format(example)})."
        )
    ways = [f"{in_words(shape, word)} (axes={word})" for word in dict.fromkeys(candidates) if word in unlike.values()]
    raise Unsuitable(
        f"the array of shape {shape} can be read as {' or as '.join(ways)}; say which, such as axes="
        f"{candidates[0]} ({SAY.format(candidates[0])}), or what else it is."
    )


def size(shape: Sequence[int], word: str, letter: str) -> int:
    """Of one axis; 1 where there is none."""
    return shape[word.index(letter)] if letter in word else 1


def _plausible(shape: tuple[int, ...], n_frames: int | None, span: int | None) -> list[str]:
    words = [word for word in CONVENTIONS.get(len(shape), ()) if _possible(shape, word, n_frames, span)]
    for least in (THIN, 2, 1):
        wide = [word for word in words if min(size(shape, word, "H"), size(shape, word, "W")) >= least or word == "NHW"]
        if wide:
            return wide
    return []


def _possible(shape: tuple[int, ...], word: str, n_frames: int | None, span: int | None) -> bool:
    n, s, c = (size(shape, word, letter) for letter in "NSC")
    if span is not None:  # films have many frames, so that no fewer of them than frames can be presumed
        return "S" in word and (word in ("NSCHW", "SNCHW") or c <= FEW)
    matched = n_frames is not None and s == n_frames and "S" in word
    if word in ("SHW", "SHWC", "SCHW"):  # one film is no data set, unless one of that length is asked for
        return matched and c <= FEW
    if word == "HWC":
        return c <= FEW and min(size(shape, word, "H"), size(shape, word, "W")) >= THIN
    if "S" not in word or matched:
        return True
    if s < 2 and word != "NSCHW":
        return False
    if word == "NCSHW" and c > FEW:
        return False
    return word.index("N") < word.index("S") or n >= s


def _order(shape: Sequence[int], word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a reading makes of an array: its shape in order, and where its axes of more than one item come from."""
    order = "NSCHW" if "S" in word else "NCHW"
    sizes = tuple(size(shape, word, letter) for letter in order)
    return sizes, tuple(word.index(letter) for letter in order if size(shape, word, letter) > 1)


def in_words(shape: Sequence[int], word: str, lengths: Sequence[int] = ()) -> str:
    """What an array holds, such as ``40 sequences of 18 frames, 3 channels, 28 x 28 pixels``.

    Args:
        shape: of the array.
        word: of letters, what its axes are.
        lengths: of the sequences, where they may differ.
    """
    n, s, c, height, width = (size(shape, word, letter) for letter in "NSCHW")

    def counted(number: int, name: str) -> str:
        return f"{number:,} {name}{'' if number == 1 else 's'}"

    parts: Iterable[str] = (counted(n, "image"),)
    if "S" in word:
        frames = f"{min(lengths):,} to {s:,} frames" if lengths and min(lengths) < s else counted(s, "frame")
        parts = (f"{counted(n, 'sequence')} of {frames}",)
    return ", ".join(chain(parts, (counted(c, "channel"), f"{height:,} x {width:,} pixels")))
