"""A stand-in for a trained model, to test util.search with: it knows colours in two languages."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from basic.retriever import Retriever
from util.search.build import fill
from util.search.writer import creating
from util.search.items import Captions, Source

COLOURS = {
    'red': (220, 30, 30),
    'green': (30, 180, 40),
    'blue': (30, 60, 220),
    'yellow': (240, 220, 40),
    'white': (250, 250, 250),
    'black': (10, 10, 10),
}
GERMAN = {
    'rot': 'red',
    'grün': 'green',
    'blau': 'blue',
    'gelb': 'yellow',
    'weiß': 'white',
    'schwarz': 'black',
}


class StandIn(Retriever):
    """Texts and images near the vectors of their colours."""

    def __init__(self, name='stand-in', dim=48):
        self.name, self.languages, self.kind, self.dim = name, ('de',), 'clip', dim
        self.weight = 0.25
        self.ranges = {'de': {'en': (-0.4, 0.9), 'tgt': (-0.3, 0.8)}}
        self.fingerprint = hashlib.sha256(name.encode()).hexdigest()
        self.calls = []  # how many texts were encoded at a time

    def encode_text(self, texts, lang=None, *, batch_size=64):
        self._branch(lang)
        self.calls.append(len(texts))
        words = [[GERMAN.get(word, word) for word in text.lower().split()] for text in texts]
        return self._unit([sum(map(self._word, some), np.zeros(self.dim)) for some in words])

    def encode_images(self, images, *, batch_size=64):
        vectors = []
        for image in images:
            opened = image if isinstance(image, Image.Image) else Image.open(image)
            mean = np.asarray(opened.convert('RGB'), dtype=float).mean(axis=(0, 1))
            nearest = min(COLOURS, key=lambda name: np.abs(mean - COLOURS[name]).sum())
            vectors.append(self._word(nearest) + 0.001 * self._word(str(mean.round(2))))
        return self._unit(vectors)

    def _word(self, word):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], 'big')
        return np.random.default_rng(seed).standard_normal(self.dim)

    def _unit(self, vectors):
        vectors = torch.tensor(np.array(vectors), dtype=torch.float32)
        return torch.nn.functional.normalize(vectors, dim=-1)


def paint(folder):
    """Images of 40 x 30 in six colours, and their paths by name."""
    paths = {}
    for name, colour in COLOURS.items():
        paths[name] = Path(folder) / f'{name}.png'
        Image.new('RGB', (40, 30), colour).save(paths[name])
    return paths


def make_index(folder, paths, model=None, captions=True, **how):
    """An index of images, with a German caption each."""
    model = model or StandIn()
    german = {english: word for word, english in GERMAN.items()}
    names = list(paths)
    told = Captions('de', names, [f'ganz {german[name]}' for name in names], list(names))
    source = Source(
        where=str(folder),
        ids=names,
        encode=lambda ids: model.encode_images([paths[name] for name in ids]),
        file=lambda name: str(paths[name]),
        captions=[told] if captions else [],
    )
    with creating(folder, model, 'nowhere', **how) as writer:
        fill(writer, model, source)
    return folder
