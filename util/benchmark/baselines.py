"""What util.benchmark compares with: the released system's way of loading, training and scoring, in
its plain steps.

Written from the description of what it does, not from its code; the results are the same, only
slower. Where the description leaves something open, the faster way is taken here. N pairs, L
tokens, F frames, D width of a feature, E common space, V visual items, Q captions.
"""

import array
import time

import numpy as np
import torch
from torch.utils.data import Dataset

from basic.bigfile import BigFile
from basic.caption import Tokens, clean_english
from basic.collection import Collection
from data_provider import Batch


class SampleBySample(Dataset):
    """Training pairs, a pair at a time: its captions are tokenised each time, its frames read one
    by one.

    Args:
        config: basic.config.Config of a video collection; rootpath: where it lies.
        tokenizer: of basic.pretrained.tokenizer.load_tokenizer.
    """

    def __init__(self, config, rootpath, tokenizer):
        self.config, self.tokenizer = config, tokenizer
        collection = Collection(config, rootpath)
        self.captions = collection.captions('train')
        file = BigFile(
            collection.find([config.data.frames], 'train', 'frame features', 'data.frames')
        )
        names, counts, rows = file.read_videos()
        # of feature.bin, by video
        self.rows = dict(zip(names, np.split(rows, np.cumsum(counts)[:-1])))
        self.path, self.dim, self._file = file.path, file.dim, None

    def __len__(self):
        return len(self.captions['en'])

    def __getitem__(self, index):
        """(frames, a list of lists of D floats; dict branch -> token ids; index)."""
        tokens = {}
        for branch, file in self.captions.items():
            text = file.texts[index]
            text = clean_english(text) if branch == 'en' and self.config.text.clean_en else text
            tokens[branch] = self.tokenizer(text)['input_ids']
        video, _ = self.captions['en'].ids[index]
        return (
            [self._frame(row) for row in self.rows[video][: self.config.visual.max_frames]],
            tokens,
            index,
        )

    def _frame(self, row):
        if self._file is None:  # each worker opens its own
            self._file = open(self.path, 'rb')
        self._file.seek(4 * self.dim * int(row))
        numbers = array.array('f')
        numbers.frombytes(self._file.read(4 * self.dim))
        return numbers.tolist()


def collate(samples):
    """Samples of SampleBySample -> data_provider.Batch, everything padded to the longest of the
    batch."""
    frames, tokens, index = zip(*samples)
    longest, dim = max(map(len, frames)), len(frames[0][0])
    visual, mask = torch.zeros(len(frames), longest, dim), torch.zeros(len(frames), longest)
    for i, item in enumerate(frames):
        visual[i, : len(item)] = torch.tensor(item)
        mask[i, : len(item)] = 1
    branches = {branch: pad([sample[branch] for sample in tokens]) for branch in tokens[0]}
    return Batch(
        visual=visual,
        visual_mask=mask,
        en=branches['en'],
        tgt=branches['tgt'],
        back=branches.get('back'),
        index=torch.tensor(index),
        total=len(index),
    )


def pad(captions):
    """Lists of token ids -> Tokens (N, L)."""
    longest = max(map(len, captions))
    ids, mask = (
        torch.zeros(len(captions), longest, dtype=torch.int64),
        torch.zeros(len(captions), longest),
    )
    for i, caption in enumerate(captions):
        ids[i, : len(caption)] = torch.tensor(caption)
        mask[i, : len(caption)] = 1
    return Tokens(ids, mask)


def train_as_released(run):
    """Let a train.Run take its steps the released way: a pass through BERT for each branch, no
    fused kernels."""
    bert = run.model.text_encoder.bert
    bert.set_attn_implementation('eager')

    def tokens(branches, **_):
        return [
            bert(input_ids=captions.ids, attention_mask=captions.mask.long()).last_hidden_state
            for captions in branches
        ]

    run.model.text_encoder.tokens = tokens
    for name in ('optimizer', 'discriminator_optimizer'):
        (group,) = getattr(run, name).param_groups
        setattr(
            run, name, torch.optim.Adam(group['params'], lr=group['lr'], foreach=False, fused=False)
        )
    return run


def score_as_released(visual, en, tgt, owner, weight, *, seconds=20.0):
    """Both directions' metrics, query by query: sort all items, go down the list and note where the
    right ones are.

    For 15,000 captions and 1,500 videos on two CPU cores the released code itself takes 3.0 s for
    the lists of right items, 4.2 s for the scores and 9.4 s for both directions: more than this.

    Args:
        visual (V, E), en (Q, E), tgt (Q, E): float32 NumPy, L2-normalised.
        owner: (Q,) int64, the visual item of each caption.
        weight: w of the English branch.
        seconds: about how much time each part that loops may take; when it is up, the queries left
            out are those at the end, and the part's time is extrapolated.
    Returns:
        (dict: R@1 and mAP, each of t2v and v2t, over the queries done; dict part -> seconds: lists,
        scores, t2v, v2t; share of the queries done in the part that came least far).
    """
    names, took, done = [str(item) for item in owner.tolist()], {}, {}
    started = time.perf_counter()
    right = []  # the captions of each visual item: every caption is looked at for each
    for item in map(str, range(len(visual))):
        right.append([i for i, name in enumerate(names) if name == item])
        if time.perf_counter() - started > seconds:
            break
    done['lists'] = len(right) / len(visual)
    took['lists'] = (time.perf_counter() - started) / done['lists']

    started = time.perf_counter()
    scores = np.zeros((len(en), len(visual)), dtype=np.float32)
    for captions, share in ((en, weight), (tgt, 1 - weight)):
        own = captions @ visual.T
        scores += share * (own - own.min()) / (own.max() - own.min())
    took['scores'] = time.perf_counter() - started

    metrics = {}
    for way, rows, truth in (
        ('t2v', scores, [[item] for item in owner.tolist()]),
        ('v2t', scores.T, right),
    ):
        started = time.perf_counter()
        best, precision = [], []
        for row, items in zip(rows, truth):
            items = set(items)
            places = [
                place for place, item in enumerate(np.argsort(-row).tolist(), 1) if item in items
            ]
            best.append(places[0])
            precision.append(sum((k + 1) / place for k, place in enumerate(places)) / len(places))
            if time.perf_counter() - started > seconds:
                break
        done[way] = len(best) / len(rows)
        took[way] = (time.perf_counter() - started) / done[way]
        metrics[way] = {
            'R@1': 100 * float(np.mean(np.array(best) == 1)),
            'mAP': float(np.mean(precision)),
        }
    return metrics, took, min(done.values())
