"""Test a pretrained dual encoder, without training, on a collection's captions and raw images.

    python -m util.zero_shot --config configs/multi30k.yaml --rootpath ROOT
                             --model NAME_OR_FOLDER [--split test] [--device 0]
                             [--batch-size 64] [--no-val] [key=value ...]

The model is any CLIP-like model of transformers, preferably with a multilingual text tower, such as
google/siglip2-base-patch16-224 or BAAI/AltCLIP-m9. It is a hub name, or a folder with model,
tokenizer and image processor. The target-language queries and their English translations are
encoded without cleaning, and the images are preprocessed as the model requires. Joins, checks,
scores, ranks and the choice of w on validation are the same as for a trained model. The result is a
run folder, ROOT/<collection>/runs/zero_shot_<lang>/seed_<n>, with config.yaml, run.json,
metrics.json and ranks.npz. Its config has the model as text.bert and visual.clip. For a second
model, give name=NAME.

N captions or images of a batch, L tokens, E width of the model's common space.
"""

import argparse
import inspect
import math
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset

from basic import distributed
from basic.collection import Collection, validation_weights
from basic.command import command
from basic.config import config_changes, config_from_dict, config_to_dict, ConfigError, load_config
from basic.errors import DataError
from basic.examples import details_of
from basic.images import CLIP
from basic.languages import one_language
from basic.loader import Loader
from basic.logger import tell
from basic.pretrained.encoders import build_dual_encoder
from basic.report import noted, result_line, table, write_report, written
from basic.run_folder import (
    CONFIG,
    MAY_DIFFER,
    check_run_folder,
    describe_start,
    read_config,
    record_start,
)
from basic.runtime import choose_devices
from data_provider import EvalSet, VisualBatches, join_split
from evaluation import Embeddings, choose_weight, evaluate, left_out, reported_weights, shown
from train import default_run_folder

NAME = 'zero_shot'


class ProcessedImages:
    """Raw images, preprocessed by a model's own image processor.

    `batch(ids)` returns (dict of tensors of N rows, None).

    Args:
        source: basic.images.ImageSource.
        processor: transformers' image processor.
    """

    def __init__(self, source, processor):
        self.source, self.processor = source, processor

    def batch(self, ids):
        images = [self.source.read(name, lambda image: image.convert('RGB')) for name in ids]
        return dict(self.processor(images=images, return_tensors='pt')), None


class TextBatches(Dataset):
    """Captions of a split. An index is a batch's number, an item dict branch -> list of str."""

    def __init__(self, texts, *, batch_size):
        self.texts, self.batch_size = texts, batch_size

    def __len__(self):
        return -(-len(next(iter(self.texts.values()))) // self.batch_size)

    def __getitem__(self, number):
        place = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return {branch: texts[place] for branch, texts in self.texts.items()}


def open_split(config, rootpath, split, processor, batch_size, weights=None):
    """Open a split's captions and images, with the same checks as for a trained model.

    Args:
        weights: weights w that the split is scored with, which decide the branches that are read.
    Returns:
        data_provider.EvalSet of TextBatches and ProcessedImages.
    Raises:
        DataError: files or images are missing, or captions do not join.
    """
    collection = Collection(config, rootpath)
    # The processor resizes the images.
    joined = join_split(collection, split, preprocessing=CLIP, weights=weights)
    texts = {branch: file.texts for branch, file in joined.files.items()}
    images = ProcessedImages(joined.source, processor)
    return EvalSet(
        split=split,
        order={},
        visual_of=joined.visual_of,
        captions=Loader(TextBatches(texts, batch_size=batch_size), workers=0),
        visuals=Loader(
            VisualBatches(images, joined.visual_ids, batch_size=batch_size),
            workers=config.train.workers,
            processes=True,
        ),
        caption_ids=joined.caption_ids,
        visual_ids=joined.visual_ids,
        feature_dim=0,
        branches=tuple(joined.files),
        left_out=joined.left_out,
        texts=texts,
        pictures=collection.media(split),
        lang=config.data.lang,
    )


class DualEncoder:
    """A model with its tokenizer: encodes texts and images as (N, E) float32, not normalised.

    Args:
        model, tokenizer: from `basic.pretrained.encoders.build_dual_encoder`.
        device: torch.device.
    """

    def __init__(self, model, tokenizer, device):
        self.model, self.tokenizer, self.device = model.to(device), tokenizer, device
        self.max_tokens = min(longest_text(model), tokenizer.model_max_length)
        # SigLIP was trained on texts padded to its full length, and reads the padding.
        self.padding = 'max_length' if model.config.model_type.startswith('siglip') else True

    def texts(self, texts):
        options = (
            {'truncation': True, 'max_length': self.max_tokens}
            if math.isfinite(self.max_tokens)
            else {}
        )
        inputs = self.tokenizer(list(texts), padding=self.padding, return_tensors='pt', **options)
        return self._features(self.model.get_text_features, inputs)

    def images(self, inputs):
        return self._features(self.model.get_image_features, inputs)

    @torch.no_grad()
    def _features(self, function, inputs):
        known = inspect.signature(function).parameters
        found = function(
            **{key: value.to(self.device) for key, value in inputs.items() if key in known}
        )
        return (found if isinstance(found, torch.Tensor) else found.pooler_output).float()


def longest_text(model):
    """The most tokens that the text tower can read; infinite if it has no table of positions."""
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and 'position' in name.rpartition('.')[2]
        and not name.startswith('vision_model')
    ]
    # RoBERTa's positions start after that of the padding.
    reserved = [0 if table.padding_idx is None else table.padding_idx + 1 for table in tables]
    return min((table.num_embeddings - r for table, r in zip(tables, reserved)), default=math.inf)


def encode(encoder, eval_set):
    """The embeddings of a split from `open_split`."""
    split = eval_set.split
    visual = torch.cat(
        [
            encoder.images(inputs)
            for inputs, _ in shown(eval_set.visuals, f'encoding {split}: images, batch')
        ]
    )
    parts = [
        {branch: encoder.texts(some) for branch, some in texts.items()}
        for texts in shown(eval_set.captions, f'encoding {split}: captions, batch')
    ]
    return Embeddings(
        visual,
        **{branch: torch.cat([part[branch] for part in parts]) for branch in eval_set.branches},
    )


def zero_shot(config, rootpath, *, split='test', device='cpu', batch_size=64, validate=True):
    """Test the model that the config names.

    Args:
        config: from `zero_shot_config`.
        rootpath: folder that holds the collection's folder.
        split: val or test.
        batch_size: captions or images per batch.
        validate: choose w on the validation split, which is used for nothing else.
    Returns:
        (content of metrics.json with the ranks, the run folder).
    Raises:
        ValueError: (ConfigError, DataError) a mistake of the user.
    """
    one_language(config, 'util.zero_shot')
    device, tree = torch.device(device), config_to_dict(config)
    folder = Path(os.path.abspath(default_run_folder(config, rootpath)))
    refuse_another(folder, tree)
    tell(f'reading {config.visual.clip}')
    model, tokenizer, processor = build_dual_encoder(config.visual.clip)
    encoder = DualEncoder(model, tokenizer, device)
    splits = dict.fromkeys([*(['val'] if validate else []), split])
    weights = {name: [] for name in splits}  # the values of w that each split is scored with
    if validate:
        weights['val'] += validation_weights(config)
    branches = Collection(config, rootpath).branches_there(split)
    weights[split] += reported_weights(config, branches=branches)
    tell(f'opening and encoding {" and ".join(splits)} in {rootpath}')
    sets = {
        name: open_split(config, rootpath, name, processor, batch_size, weights[name])
        for name in splits
    }
    embeddings = {name: encode(encoder, eval_set) for name, eval_set in sets.items()}
    choice, more = {'chosen_weight': None, 'chosen_from': None}, []
    if validate:
        choice = choose_weight([embeddings['val']], [sets['val']], config)
        more = [choice['chosen_weight']]
    scorings = []
    report = {
        'checkpoint': config.visual.clip,
        'epoch': 0,
        'config': config.name,
        'collection': config.data.collection,
        'lang': config.data.lang,
        **choice,
        **left_out([sets[split]]),
        **evaluate(
            embeddings[split],
            sets[split],
            config,
            with_ranks=True,
            weights=reported_weights(config, *more, branches=branches),
            keep=scorings,
        ),
    }
    with noted('report.html'):
        weight = report['result']['weight']
        report['details'] = details_of(config, scorings, [embeddings[split]], [sets[split]], weight)
    folder.mkdir(parents=True, exist_ok=True)
    record_start(
        folder, describe_start(rootpath=os.path.abspath(rootpath), device=device, model=model), tree
    )
    return report, folder


def refuse_another(folder, tree):
    """Raise ConfigError if the folder has anything but a test of this model with this config."""
    if not (folder / CONFIG).exists():
        check_run_folder(folder, tree)
        return
    changes = config_changes(config_to_dict(read_config(folder)), tree, MAY_DIFFER)
    if changes:
        raise ConfigError(
            f'{folder} has the result of another model or of other options'
            f' ({"; ".join(changes)}): give name=NAME for another folder'
        )


def zero_shot_config(configs, overrides, model):
    """The collection's config with the model in it; raises ConfigError as `load_config` does."""
    tree = config_to_dict(load_config(configs, overrides))
    if not any(text.startswith('name=') for text in overrides):
        tree['name'] = NAME
    tree['text']['bert'] = tree['visual']['clip'] = str(model)
    tree['visual']['kind'] = 'clip'
    tree['compute']['image_cache'] = 'none'
    return config_from_dict(tree)


@command('zero_shot')
def main(argv=None):
    """The command line; returns the exit status, see basic.command."""
    parser = argparse.ArgumentParser(
        prog='python -m util.zero_shot', description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        '--config',
        required=True,
        action='append',
        metavar='FILE',
        help='a collection of raw images, such as configs/multi30k.yaml',
    )
    parser.add_argument(
        '--rootpath',
        required=True,
        metavar='ROOT',
        help="folder that holds the collections' folders",
    )
    parser.add_argument(
        '--model',
        required=True,
        metavar='NAME_OR_FOLDER',
        help='hub name or local folder of a CLIP-like model',
    )
    parser.add_argument('--split', choices=('val', 'test'), default='test', help='default: test')
    parser.add_argument(
        '--device',
        default='auto',
        help='auto (default: a GPU if there is one), cpu, or the index of a GPU, such as 0',
    )
    parser.add_argument(
        '--batch-size', type=int, default=64, metavar='N', help='captions or images per batch'
    )
    parser.add_argument(
        '--no-val', action='store_true', help='do not choose w on the validation split'
    )
    parser.add_argument(
        'overrides', nargs='*', metavar='key=value', help='options over the config files'
    )
    args = parser.parse_intermixed_args(argv)
    if args.batch_size < 1:
        parser.error('--batch-size: expected at least 1')
    devices = choose_devices(args.device)
    if len(devices) > 1:
        raise DataError(f'--device {args.device}: expected one device')
    report, folder = zero_shot(
        zero_shot_config(args.config, args.overrides, args.model),
        args.rootpath,
        split=args.split,
        device=distributed.start(devices),
        batch_size=args.batch_size,
        validate=not args.no_val,
    )
    print(table(report))
    print(f'written: {written(report, write_report(report, folder=folder))}')
    print(result_line(report))
    return 0


if __name__ == '__main__':
    sys.exit(main())
