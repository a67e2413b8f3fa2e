"""A trained model in use: texts, images, videos and features into one space, and their scores.

    from evaluation import load_model
    model = load_model(RUN)
    queries = model.encode_text(['ein Hund rennt'], lang='de')
    images = model.encode_images(['dog.jpg', 'cat.jpg'])
    scores = model.score(queries, images)

N items, F frames, D width of a feature, V visual items, E common space.
"""

import hashlib
import json
import logging
import threading
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from basic import runtime
from basic.caption import pack_texts
from basic.inputs import ImageBatches, check_features, check_images, check_texts, check_videos
from basic.inputs import check_size, in_batches
from basic.languages import languages
from basic.loader import Loader
from basic.pretrained.encoders import weights_hash
from basic.scoring import cut

log = logging.getLogger(__name__)
# Threads take turns, batch by batch: a tokenizer and torch's precision are shared by all of them.
BLOCK = 8192  # queries, and visual items, that are scored at a time
TURN = threading.Lock()


class Retriever:
    """A trained model that encodes texts and visual items into one space; `load_model` makes one.

    Vectors are L2-normalised float32 tensors on the CPU: the cosine of two is their inner product.

    An item's vector does not depend on the items beside it: batches hold items of one length, and
    nothing is padded. So a model with `padded_mean` pooling, as released, takes the mean over each
    item's own length, where a test takes it over that of its batch: the vectors differ a little
    from those of evaluation.py. Batches of another size round differently, in float32 by less than
    1e-6; with batch_size=1 vectors are equal to the last bit, whatever is encoded with them.

    Threads may share it.

    Attributes:
        name: short, for people.
        languages: the target languages, tuple of str.
        kind: what the visual encoder reads: frames, pooled or clip.
        dim: E, width of the space.
        weight: w, share of the English branch in a score: the one chosen on validation, or else
            that of `train.val_weight`.
        ranges: dict language -> {'en': (low, high), 'tgt': (low, high)}, the lowest and highest
            cosine of each branch on validation; empty where the checkpoint does not have them.
        config, model, tokenizer, device: as they were trained, and where the model is.
    """

    def __init__(self, model, config, tokenizer, *, device, choice=None, name=''):
        choice = choice or {}
        self.model, self.config, self.tokenizer, self.device = model, config, tokenizer, device
        self.name, self.languages, self.kind = name, languages(config), config.visual.kind
        self.dim = config.space.dim
        self.weight = float(choice.get('chosen_weight', config.train.val_weight))
        self.ranges = {
            lang: {branch: (found['low'], found['high']) for branch, found in branches.items()}
            for lang, branches in (choice.get('val_ranges') or {}).items()
        }

    def __repr__(self):
        return f'<Retriever {self.name}: {self.kind}, {", ".join(self.languages)}, {self.dim}-d>'

    @cached_property
    def fingerprint(self):
        """Hex digits that are the same for models that give the same vectors, wherever they lie."""
        state = self.model.state_dict()
        used = {name: state[name] for name in state if not name.startswith('discriminator.')}
        text, visual = self.config.text, self.config.visual
        made_from = [
            weights_hash(used),
            self.model.architecture,
            *(getattr(text, key) for key in ('clean_en', 'positions', 'heads', 'score_scale')),
            *(getattr(visual, key) for key in ('kind', 'max_frames', 'heads', 'score_scale')),
            (text.pooling, visual.pooling),
            self.tokenizer.backend_tokenizer.to_str(),
        ]
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    # ------------------------------------------------------------------------------ encoding

    def encode_text(self, texts, lang=None, *, batch_size=64):
        """Texts through a text branch.

        Args:
            texts: list of str; long ones are cut, with a warning.
            lang: `en`: the English branch, whose texts are cleaned as in training; a target
                language or None: the target branch, which all target languages share.
        Returns:
            (N, E).
        Raises:
            ValueError: another language, an empty list, something that is no text.
        """
        texts, branch = check_texts(texts), self._branch(lang)
        with TURN:
            tokens = pack_texts(self.config, branch, texts, self.tokenizer)
        if tokens.cut:
            most = self.config.text.positions
            log.warning('%d texts are longer than %d tokens and were cut', tokens.cut, most)

        def prepare(rows):
            return (tokens.padded(rows).to(self.device),)

        return self._encode(self.model.encode_text, prepare, tokens.lengths, batch_size)

    def encode_images(self, images, *, batch_size=64):
        """Images, read and preprocessed as in training; as there, an EXIF rotation is ignored.

        Args:
            images: list of paths and PIL images, in any mix.
        Returns:
            (N, E).
        Raises:
            ValueError: the model reads no images; an empty list, something else than images.
            DataError: an image that cannot be read; names it.
        """
        self._refuse_other_kind('clip')
        images = check_images(images)
        check_size(batch_size)
        paths = not any(isinstance(image, Image.Image) for image in images)
        batches = ImageBatches(images, self.model.preprocessing, batch_size=batch_size)
        workers = min(len(batches) - 1, 16, runtime.cpu_count()) if paths else 0
        loader = iter(Loader(batches, workers=workers, processes=True))  # in their order

        def prepare(_):
            return (next(loader).to(self.device),)

        return self._encode(self.model.encode_visual, prepare, np.zeros(len(images)), batch_size)

    def encode_videos(self, videos, *, batch_size=64):
        """Videos from the features of their frames, cut to their first `visual.max_frames`.

        Args:
            videos: list of arrays or tensors (F, D), one for each video; D is
                `model.architecture['feature_dim']`.
        Returns:
            (N, E).
        Raises:
            ValueError: the model reads no frames; an empty list, another width, NaN.
        """
        self._refuse_other_kind('frames')
        most = self.config.visual.max_frames
        videos = check_videos(videos, self.model.architecture['feature_dim'], most)

        def prepare(rows):
            frames = torch.stack([videos[row] for row in rows]).to(self.device)  # (N, F, D)
            return frames, torch.ones_like(frames[..., 0])

        lengths = [len(video) for video in videos]
        return self._encode(self.model.encode_visual, prepare, lengths, batch_size)

    def encode_features(self, features, *, batch_size=64):
        """Images from one feature each.

        Args:
            features: array or tensor (N, D).
        Returns:
            (N, E).
        Raises:
            ValueError: the model reads no pooled features; another shape, NaN.
        """
        self._refuse_other_kind('pooled')
        features = check_features(features, self.model.architecture['feature_dim'])

        def prepare(rows):
            return (features[rows].to(self.device),)

        return self._encode(self.model.encode_visual, prepare, np.zeros(len(features)), batch_size)

    @torch.no_grad()
    def _encode(self, encode, prepare, lengths, batch_size):
        """encode(*prepare(rows)) for all items, in batches of one length each -> (N, E)."""
        found, precision = torch.empty(len(lengths), self.dim), self.config.compute.precision
        for rows in in_batches(lengths, batch_size):
            given = prepare(rows)
            with (
                TURN,
                runtime.matrix_precision(precision),
                runtime.autocast(self.device, precision),
            ):
                found[rows] = encode(*given).cpu()
        return found

    def _branch(self, lang):
        if lang in (None, *self.languages):
            return 'tgt'
        if lang == 'en':
            return 'en'
        raise ValueError(
            f'lang={lang!r}: this model was trained for {", ".join(self.languages)}, and for en,'
            ' its English branch'
        )

    def _refuse_other_kind(self, kind):
        reads = {
            'frames': 'the features of frames: call encode_videos',
            'pooled': 'one feature an image: call encode_features',
            'clip': 'images: call encode_images',
        }
        if kind != self.kind:
            raise ValueError(f'this model reads {reads[self.kind]} (visual.kind={self.kind})')

    # --------------------------------------------------------------------------------- search

    def query(self, texts, translations=None, lang=None, weight=None, *, batch_size=64):
        """One vector for each query, to search with: inner products with visual items rank them.

        With translations it is w / range_en * en + (1 - w) / range_tgt * tgt, of the two branches'
        vectors and `ranges`. It ranks items as the fused score does with both ranges fixed
        (basic.rescoring.frozen), and is not normalised. Where the ranges are unknown, both count
        as 1.

        Args:
            texts: list of str, in a target language, or English with lang=`en`.
            translations: the same in English, list of str; None: `texts` alone, by their branch.
            lang: the language of `texts`; None: the model's, which must be one with translations.
            weight: w, from 0 to 1; None: the model's.
        Returns:
            (N, E).
        Raises:
            ValueError: as `encode_text`; translations of another number, or of English; a weight
                without translations.
        """
        if translations is None:
            if weight is not None:
                raise ValueError('weight is the share of the translations: give these, too')
            return self.encode_text(texts, lang, batch_size=batch_size)
        texts, translations = check_texts(texts), check_texts(translations, 'translations')
        if len(translations) != len(texts):
            raise ValueError(f'{len(texts)} texts, but {len(translations)} translations')
        tgt = self.encode_text(texts, lang, batch_size=batch_size)
        en = self.encode_text(translations, 'en', batch_size=batch_size)
        return self.fuse(en, tgt, lang, weight)

    def fuse(self, en, tgt, lang=None, weight=None):
        """The vectors of `query`, from those of both branches, as `encode_text` gives them.

        Args:
            en, tgt: (N, E), of the translations and of the texts.
            lang, weight: as `query` has.
        Returns:
            (N, E).
        """
        weight = self.weight if weight is None else float(weight)
        if not 0 <= weight <= 1:
            raise ValueError(f'weight={weight:g}; expected 0 to 1')
        en_range, tgt_range = self._widths(lang)
        return weight / en_range * en + (1 - weight) / tgt_range * tgt

    def _widths(self, lang):
        """The widths of the ranges of en and tgt in a language."""
        if self._branch(lang) == 'en':
            raise ValueError("lang='en' has no translations: give the texts alone")
        if lang is None and len(self.languages) > 1 and self.ranges:
            raise ValueError(
                f'each language has ranges of its own: give lang, of {", ".join(self.languages)}'
            )
        ranges = self.ranges.get(lang or self.languages[0], {})
        pairs = [ranges.get(branch, (0, 1)) for branch in ('en', 'tgt')]
        return [high - low if high > low else 1 for low, high in pairs]

    @torch.no_grad()
    def score(self, queries, visual):
        """Scores of queries with visual items: inner products, in full float32.

        Args:
            queries: (N, E), arrays or tensors; those of `encode_text` or `query`.
            visual: (V, E), likewise; may be a memory-mapped array, which is read by blocks.
        Returns:
            (N, V).
        Raises:
            ValueError: another shape.
        """
        for what, part in (('queries', queries), ('visual', visual)):
            if len(np.shape(part)) != 2 or np.shape(part)[1] != self.dim:
                raise ValueError(
                    f'{what}: expected shape (items, {self.dim}), found {tuple(np.shape(part))}'
                )
        scores = torch.empty(len(queries), len(visual))
        for columns in cut(len(visual), BLOCK):
            block = on_device(visual[columns], self.device)
            for rows in cut(len(queries), BLOCK):
                with TURN, runtime.matrix_precision('fp32'):
                    product = on_device(queries[rows], self.device) @ block.T
                    scores[rows, columns] = product.cpu()
        return scores


def on_device(rows, device):
    """Rows of an array or a tensor as a float32 tensor on `device`."""
    if not isinstance(rows, torch.Tensor):
        rows = torch.from_numpy(np.array(rows, dtype=np.float32))
    return rows.to(device, torch.float32)
