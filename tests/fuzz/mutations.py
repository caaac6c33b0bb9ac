"""Seeded damage: to bytes, to trees of JSON values, and to what a `.pt` file holds."""

import copy
import json
from random import Random
from typing import Any

import torch

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        "x",
        "NaN",
        "-1",
        "0",
        "None",
        "true",
        "x" * 70_000,
        "\x00",
        "\ud800",
        "a\nb",
        "\x1b[2J",
        "\u202e",
        "é音🎵",
    ),
    *("../../x", "/etc/passwd", "C:\\x", "CON", "-rf", "--help", "{0}", "%s", "$(touch owned)", "__class__", "a" * 300),
    *([], {}, [[]], [None], {"": None}, [1, "a", {}], {"__reduce__": ["os.system", "x"]}, DEEP, [0] * 1000),
)
HUGE = "9" * 5000  # more digits than Python reads
RAW = (
    HUGE,
    f"-{HUGE}",
    "1e999",
    "NaN",
    "-Infinity",
    "[" * 3000,
    "[" * 100_000,
    '{"a":' * 3000,
    '"\\ud800"',
    "1" + "0" * 400,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value in a tree, the whole first."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(found for key, value in items for found in places(value, (*path, key)))]


def damage_tree(tree: Any, random: Random) -> Any:
    """Return a copy in which one to three values are replaced, removed, doubled or swapped."""
    tree = copy.deepcopy(tree)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        path = random.choice(places(tree))
        junk = copy.deepcopy(random.choice(JUNK))
        if not path:
            if random.random() < 0.2:
                return junk
            continue
        owner = tree
        for key in path[:-1]:
            owner = owner[key]
        match random.randrange(5):
            case 0 if isinstance(owner, dict):
                del owner[path[-1]]
            case 1 if isinstance(owner, dict):
                owner[random.choice(("extra", "", "__proto__", "name"))] = junk
            case 2 if isinstance(owner, list):
                owner.insert(path[-1], junk)
            case 3:
                owner[path[-1]] = [owner[path[-1]]]
            case _:
                owner[path[-1]] = junk
    return tree


def damage_bytes(content: bytes, random: Random) -> bytes:  # noqa: C901 - one kind of damage a line
    """Return bytes that are cut, flipped, doubled, filled in, or of another encoding."""
    place = random.randrange(len(content) + 1)
    end = min(len(content), place + random.choice((1, 2, 8, 64, 1024)))
    match random.randrange(9):
        case 0:
            return content[:place]
        case 1:
            return content[:place] + content[end:]
        case 2:
            return content[:place] + random.randbytes(end - place) + content[end:]
        case 3:
            return content[:end] + content[place:]
        case 4:
            flipped = bytearray(content)
            for _ in range(random.choice((1, 3, 30))):
                if flipped:
                    flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
            return bytes(flipped)
        case 5:
            return content[:place] + b"\0" * (end - place) + content[end:]
        case 6:
            return random.choice((b"", b"\0", b"\xef\xbb\xbf" + content, b"\xff\xfe" + content, b"[" * 100_000))
        case 7:
            return content.decode("utf-8", "replace").encode("utf-16")
        case _:
            return random.randbytes(random.choice((1, 16, 4096)))


def damaged_json(tree: Any, random: Random) -> bytes:
    """Return a JSON text that is damaged somewhere: its values, its numbers, or its bytes."""
    kind = random.random()
    if kind < 0.65:
        return json.dumps(damage_tree(tree, random)).encode("utf-8", "surrogatepass")
    if kind < 0.8:
        marked = copy.deepcopy(tree)
        paths = places(marked)[1:]
        if paths:
            path = random.choice(paths)
            owner = marked
            for key in path[:-1]:
                owner = owner[key]
            owner[path[-1]] = "@here@"
        return json.dumps(marked).replace('"@here@"', random.choice(RAW)).encode()
    return damage_bytes(json.dumps(tree).encode(), random)


def odd_tensors(like: torch.Tensor) -> list[Any]:
    """Return what may stand where a tensor is expected."""
    return [
        *(like[:0], like[:1], like[..., :1], like.unsqueeze(0), like.flatten(), like.float().mean(), torch.tensor([])),
        *(like.double(), like.half(), like.bool(), like.to(torch.int64), like.to(torch.complex64), like.to_sparse()),
        *(like.float() * float("nan"), like.float() + float("inf"), like.float() * 1e38, like.to(torch.uint8)),
        *(torch.zeros(0, 0), torch.zeros(2, 0, 3), torch.zeros(1, 10**6).expand(8, 10**6), torch.zeros(4, 4, 4, 4)),
        *(
            like.tolist(),
            [like, like],
            {"a": like},
            torch.nn.Parameter(like.float()),
            like.t() if like.dim() == 2 else None,
        ),
    ]


def damage_song(song: dict[str, Any], random: Random) -> Any:
    """Return a sample's content with one or two parts replaced."""
    song = dict(song)
    for _ in range(random.choice((1, 1, 2))):
        key = random.choice(list(song) or ["x"])
        value = song.get(key)
        match random.randrange(6):
            case 0:
                song.pop(key, None)
            case 1 if key == "metadata" or not isinstance(value, torch.Tensor):
                song[key] = damage_tree(value, random)
            case 2:
                song[random.choice((1, None, "extra", ("a",)))] = value
            case 3:
                return random.choice(([song], list(song.values()), "text", 7, None, torch.zeros(3), {}))
            case _:
                song[key] = random.choice(odd_tensors(value) if isinstance(value, torch.Tensor) else list(JUNK))
    return song
