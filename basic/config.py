"""The configuration: one typed schema, merged from three places and checked before anything else
runs.

    schema (this file)  <-  configs/<name>.yaml, on top of its `base:` file (or list of files)
                        <-  further files, such as configs/ablation/<name>.yaml, in their order  <-
                        key=value

An unknown key, a wrong type or an impossible combination raises `ConfigError` in the first second,
naming the key and what would be valid. Every number that the paper or its released code states is a
field here, with its source.
"""

import math
import re
import string
from dataclasses import dataclass, field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from basic.errors import UserError
from basic.foreign import LARGEST, parse_yaml, plain_tree, read_yaml, shown

POOLINGS = ('padded_mean', 'mean', 'max')
SCORE_SCALES = ('value_width', 'key_width')
VISUAL_KINDS = ('frames', 'pooled', 'clip')
DISCRIMINATORS = ('strong', 'not-so-weak', 'weak')
# What each loss term reads beside the English and the visual embeddings: the branches tgt, back and
# cross (the teacher), and BERT's tokens, of which the discriminator tells the language. Which
# captions are loaded and which branches are encoded follows from this table and the weights.
TERMS = {
    'triplet_en': (),
    'triplet_tgt': ('tgt',),
    'kd_sim': ('tgt', 'cross'),
    'kd_feat': ('tgt', 'cross'),
    'triplet_back': ('back',),
    'back_visual': ('back',),
    'adversarial': ('tgt', 'tokens'),
}
SPLITS = ('train', 'val', 'test')
PRECISIONS = ('fp32', 'tf32', 'bf16')
ATTENTIONS = ('auto', 'fused', 'eager')
IMAGE_CACHES = ('none', 'pixels', 'embeddings')
CONTRASTIVE = ('triplet', 'infonce')
SCHEDULES = ('released', 'cosine')
SELECT = ('t2v', 'sumr')
TEACHERS = ('self', 'momentum')
MOST_FILES = 100  # that `base:` may lead to
MISSING_ITEMS = ('error', 'skip')


class ConfigError(UserError):
    """A configuration that cannot be run: the message names the key, what was found and what is
    valid."""


@dataclass
class TrainCaptions:
    """Caption files of the training split; the templates' fields are explained at `Data`."""

    en: str = '{c}train.caption.txt'  # human English
    tgt: str = '{c}train_google_enc2{lang}.caption.txt'  # its machine translation
    # the translation, machine-translated back
    back: str = '{c}train_google_enc2{lang}2enc.caption.txt'


@dataclass
class ValCaptions:
    """Caption files of the validation split."""

    en: str = '{c}val_google_{lang}2enc.caption.txt'  # machine translation of the target caption
    tgt: str = '{c}val_{lang}.caption.txt'  # human target language


@dataclass
class TestCaptions:
    """Caption files of the test split."""

    en: str = '{c}test_google_{lang}2enc.caption.txt'  # machine translation of the target caption
    tgt: str = '{c}test_{lang}.caption.txt'  # human target language


@dataclass
class Captions:
    """Caption files, relative to ROOTPATH/<collection>/TextData."""

    train: TrainCaptions = field(default_factory=TrainCaptions)
    val: ValCaptions = field(default_factory=ValCaptions)
    test: TestCaptions = field(default_factory=TestCaptions)


@dataclass
class SplitFiles:
    """A list of candidate paths for each split; the first that exists is used."""

    train: list[str] = field(default_factory=list)
    val: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)


@dataclass
class Data:
    """Where the captions and the visual items lie.

    File names are templates. Their fields: {c} the collection's name as the copy at hand spells it,
    {p} the training captions' prefix, {lang} the target language's tag, {split} train/val/test, {t}
    the task's suffix, {feature} `visual.feature` (tried with and without its underscores). In
    `images`, {id} is the visual item's id.
    """

    collection: str = MISSING  # folder below ROOTPATH, and the prefix {c} of file names
    # other spellings of the collection to accept in both places
    aliases: list[str] = field(default_factory=list)
    lang: str = 'zh'  # target language, as the file names write it
    task: int = 1  # Multi-30K's task; other collections have one task only
    # {p} by task; {c} for a task not listed
    train_prefix: dict[str, str] = field(default_factory=dict)
    # {t} by "<task>/<lang>"; empty if not listed
    suffix: dict[str, str] = field(default_factory=dict)
    captions: Captions = field(default_factory=Captions)
    # BigFile folder of frame features, for visual.kind=frames
    frames: str = 'FeatureData/{feature}'
    # .npy of one row an image, for visual.kind=pooled
    pooled: SplitFiles = field(default_factory=SplitFiles)
    # the image lists: row i of the .npy is line i here
    ids: SplitFiles = field(default_factory=SplitFiles)
    # raw images, for visual.kind=clip; .JPG, .png ... are found where it says .jpg
    images: str = ''
    missing: str = 'error'  # captions whose visual item is missing: error | skip (left out)
    # a record: the rate of corrupted training translations; names the run's folder
    noise: float = 0.0


@dataclass
class Text:
    """Text encoder (METHOD: mBERT, linear, positions, one attention block shared by every
    branch)."""

    # hub name, or a local folder as transformers saves it
    bert: str = 'bert-base-multilingual-cased'
    pretrained: bool = True  # False: take the architecture from `bert`, start from random weights
    # as released: lower-case and strip accents, though the vocabulary is cased
    lowercase: bool = True
    clean_en: bool = True  # as released: English keeps A-Za-z0-9 only, and a full stop is appended
    # the same for back-translations, which the released code leaves as they are
    clean_back: bool = False
    # of BERT; others are frozen
    trained_layers: list[int] = field(default_factory=lambda: [5, 6, 7, 8, 9, 10, 11])
    train_embeddings: bool = False  # BERT's embeddings; the paper freezes them
    # all of BERT, however deep, embeddings included, whatever the two above say
    train_all: bool = False
    bert_dropout: float = 0.1  # inside BERT, in frozen layers too
    hidden: int = 768  # width of the attention block
    heads: int = 8  # of the attention block; they divide `hidden` and `qk_width`
    qk_width: int = 512  # width of queries and keys; the values are `hidden` wide
    # as released sqrt(hidden / heads); key_width: sqrt(qk_width / heads)
    score_scale: str = 'value_width'
    positions: int = 250  # learned positions; longer captions are cut
    dropout: float = 0.1  # after BERT: of the linear layer, the positions and the attention block
    # as released: the mean includes padding; `mean` and `max` leave it out
    pooling: str = 'padded_mean'


@dataclass
class Visual:
    """Visual encoder: frame features, one pooled feature an image, or raw images through CLIP."""

    kind: str = 'frames'  # frames | pooled | clip, in this order
    feature: str = 'i3d_kinetics'  # name of the feature, for `frames` and `pooled`
    feature_dim: int = 0  # its width; 0: as found in the data
    # `frames`: width of the attention block; `clip`: width after the linear layer
    hidden: int = 1024
    heads: int = 8  # `frames`: of the attention block
    qk_width: int = 512  # `frames`: width of queries and keys
    score_scale: str = 'value_width'  # as released, see text.score_scale
    max_frames: int = 64  # videos are cut to their first frames
    positions: int = 80  # learned positions
    dropout: float = 0.1  # `frames`: of the linear layer, the positions and the attention block
    pooling: str = 'padded_mean'  # over frames
    clip: str = 'openai/clip-vit-base-patch32'  # hub name or local folder
    clip_pretrained: bool = True  # False: CLIP's architecture with random weights
    train_clip: bool = False  # as released no gradient reaches CLIP's image tower


@dataclass
class Space:
    """Projections to the common space (linear, batch norm, dropout, L2 normalisation)."""

    dim: int = 1536  # width of the common space
    dropout: float = 0.2  # after the batch norm


@dataclass
class Discriminator:
    """Language discriminator on BERT's token outputs."""

    kind: str = 'strong'  # `strong` for VATEX, `not-so-weak` for the others, `weak`
    lr: float = 1e-3  # of its own Adam
    relu_skip: bool = True  # as released a residual block's skip carries the ReLU'd input
    pooling: str = 'padded_mean'  # as released the average includes padding; `mean` leaves it out


@dataclass
class Weights:
    """Weight of each term; 0 leaves the term, and what only it needs, out."""

    triplet_en: float = 1.0  # English and visual
    triplet_tgt: float = 0.6  # translation and visual: the paper's tri_alpha
    kd_sim: float = 0.4  # similarity distillation: dtl_beta
    kd_feat: float = 0.1  # feature distillation: l1_gama
    triplet_back: float = 0.5  # English and back-translation: back_w
    back_visual: float = 0.0  # not the paper's: back-translation and visual, as `contrastive` says
    adversarial: float = 0.001  # language adversary: scale


@dataclass
class Loss:
    """Losses; L is the weighted sum of the terms."""

    weights: Weights = field(default_factory=Weights)
    margin: float = 0.2  # triplet margin, in cosine
    hardest: bool = True  # hardest negative in the batch; False: the sum over all negatives
    # as released captions of one visual item are each other's negatives
    mask_same_visual: bool = False
    temperature: float = 0.07  # of the similarity distillation
    smooth_l1_beta: float = 4.0  # of the feature distillation
    # as released the teacher's distribution also moves the visual side
    detach_teacher_visual: bool = False
    # as released feature distillation also moves the cross branch
    detach_cross_feature: bool = False
    # what triplet_en and triplet_tgt compute: triplet | infonce (see loss.infonce)
    contrastive: str = 'triplet'
    # what computes the cross branch: self | momentum (see model.MomentumTeacher)
    teacher: str = 'self'
    teacher_momentum: float = 0.999  # share of the momentum teacher that stays in a step


@dataclass
class Train:
    """Optimisation and schedule."""

    seed: int = 1  # of the weights, the order of the pairs and dropout
    epochs: int = 50  # at most
    batch_size: int = 128  # caption pairs
    lr: float = 1e-4  # Adam, encoders and projections
    bert_lr: float = 0.0  # of BERT's trained layers; 0: as `lr`
    # released: by epoch, the next four options | cosine: by step, with a linear warm-up, over
    # exactly `epochs` epochs (see basic.schedule.CosineSchedule)
    schedule: str = 'released'
    warmup: float = 0.1  # cosine: share of all steps in which the rate rises
    lr_decay: float = 0.99  # after each epoch
    halve_factor: float = 0.5  # after an epoch without improvement, too ...
    halve_wait: int = 3  # ... if this many epochs passed since the start or the last halving
    patience: int = 10  # stop after more epochs than this without improvement
    grad_clip: float = 2.0  # global L2 norm over encoders and projections; 0: none
    workers: int = 2  # batches made at once, by threads, images by processes; 0: none ahead
    # probability that the English branch reads a pair's back-translation in place of its human
    # caption, drawn anew in each epoch
    back_as_en: float = 0.0
    val_weight: float = 0.2  # w of the English branch in validation
    # what chooses the model: t2v (as released: sum of the text-to-visual recalls at `val_weight`) |
    # sumr (SumR of both directions at the best w of validation)
    select: str = 't2v'
    keep_last: bool = False  # keep last.pt, from which a longer training can go on, after the test


@dataclass
class Compute:
    """How it is computed: changes speed, memory and rounding, not what is computed."""

    # fp32 | tf32 (matrix products on a GPU) | bf16 (autocast; losses in float32)
    precision: str = 'fp32'
    # fused (SDPA) | eager (written out); auto: see basic.layers.AttentionBlock
    attention: str = 'auto'
    compile: bool = False  # torch.compile of BERT and the visual encoder, for any length
    micro_batch: int = 0  # pairs encoded at once, the negatives still being the batch's; 0: all
    # recompute BERT's layers in the backward pass instead of keeping them
    checkpointing: bool = False
    # clip: keep each image as pixels (uint8) or as the frozen tower's embedding
    image_cache: str = 'none'
    # MiB for blocks of scores and embeddings; less is slower, not different
    score_memory: int = 1024


@dataclass
class Eval:
    """Scoring."""

    val_batch_size: int = 128  # with padded_mean the batch matters
    test_batch_size: int = 64  # as released, not that of validation
    # w of the English branch
    weights: list[float] = field(default_factory=lambda: [1.0, 0.8, 0.5, 0.2, 0.0])
    # w to choose from on validation; empty: eval.weights
    weight_grid: list[float] = field(default_factory=list)
    ties: str = 'pessimistic'  # rank among equal scores: pessimistic (last) | mean (middle)


@dataclass
class Config:
    """Everything a run depends on, except where its data lie."""

    name: str = ''  # names the run's folder; the config file's name if empty
    data: Data = field(default_factory=Data)
    text: Text = field(default_factory=Text)
    visual: Visual = field(default_factory=Visual)
    space: Space = field(default_factory=Space)
    discriminator: Discriminator = field(default_factory=Discriminator)
    loss: Loss = field(default_factory=Loss)
    train: Train = field(default_factory=Train)
    compute: Compute = field(default_factory=Compute)
    eval: Eval = field(default_factory=Eval)


def load_config(path=None, overrides=()):
    """Merge schema, YAML files (and their bases) and `key=value` strings; check; return the frozen
    config.

    Args:
        path: YAML file, a list of them, of which later ones win, or None for the schema alone.
            Without the option `name=...` the config is called by all of them, each by its own
            `name` or else its file's name: vatex.yaml with ablation/no_adversary.yaml is
            vatex_no_adversary.
        overrides: strings such as `train.lr=3e-4` or `text.trained_layers=[2,3]`.
    Returns:
        A `Config`; attribute access, read-only.
    Raises:
        ConfigError: unknown key, wrong type, impossible combination; names the key.
    """
    paths = [path] if isinstance(path, str | Path) else list(path or ())
    layers, names = [], []
    for path in paths:
        found = _yaml_layers(path)
        layers += [(str(file), tree) for file, tree in found]
        names.append(
            next((tree['name'] for _, tree in reversed(found) if tree.get('name')), Path(path).stem)
        )
    if len(paths) > 1:
        layers.append((' with '.join(map(str, paths)), {'name': '_'.join(map(str, names))}))
    return _merged([*layers, *_options(overrides)], name=names[0] if names else '')


def reads(weights):
    """The set of what the loss terms with a weight above 0 read, see TERMS."""
    return {part for term, parts in TERMS.items() if weights[term] > 0 for part in parts}


def keys_of(path):
    """The dotted keys that a YAML file, or one of its bases, sets; raises ConfigError as
    `load_config`."""
    return {
        key
        for _, tree in _yaml_layers(path)
        for key, value in _leaves(tree)
        if not isinstance(value, dict)
    }


def config_from_dict(tree, overrides=(), source='stored config'):
    """Rebuild a config from the plain dict that a run folder or a checkpoint holds; raises
    ConfigError as above.

    Args:
        tree: anything that a stranger's file may hold; its text is text, nothing in it is filled
            in.
        overrides: `key=value` strings.
        source: what messages call the tree.
    """
    if not isinstance(tree, dict):
        raise ConfigError(f'{source}: expected keys and values, found {type(tree).__name__}')
    return _merged([(source, plain_tree(tree, source, ConfigError)), *_options(overrides)], name='')


def config_to_dict(config):
    """The config as plain dicts, lists, numbers and strings."""
    return OmegaConf.to_container(
        config if isinstance(config, DictConfig) else OmegaConf.structured(config), resolve=True
    )


def _options(overrides):
    """(source, tree) of each `key=value` string."""
    for text in overrides:
        if '=' not in text or text.startswith(('=', '-')):
            raise ConfigError(
                f"option '{text}' is not of the form key=value, for example train.lr=3e-4"
            )
        key, _, raw = text.partition('=')
        source = f"option '{text}'"
        try:
            tree = _option_value(_field_type(key), raw)
        except ValueError as error:
            raise ConfigError(f'{source}: what stands after = cannot be read: {error}') from None
        for part in reversed(key.split('.')):
            tree = {part: tree}
        yield source, plain_tree(tree, source, ConfigError)


def _option_value(kind, raw):
    """The value of an option's text: text as it was typed, unless it is in quotes; anything else as
    YAML reads it."""
    if kind is str:
        return _unquoted(raw) if len(raw) > 1 and raw[0] == raw[-1] and raw[0] in '\'"' else raw
    if kind == list[str] and re.fullmatch(r'\[[^\'"]*\]', raw, re.DOTALL):
        return [item.strip() for item in raw[1:-1].split(',')] if raw[1:-1].strip() else []
    return parse_yaml(raw)


def _unquoted(raw):
    try:
        value = parse_yaml(raw)
    except ValueError:
        value = None
    if not isinstance(value, str):
        raise ValueError('it is in quotes, but is not quoted as in YAML; text needs no quotes here')
    return value


def _yaml_layers(path, seen=(), read=None):
    """(file, tree) from the innermost `base:` outwards; `read`: the files read so far."""
    path, read = Path(path), [] if read is None else read
    if not path.is_file():
        known = sorted(p.name for p in path.parent.glob('*.yaml')) if path.parent.is_dir() else []
        raise ConfigError(
            f'no config file {path}; {path.parent} has: {", ".join(known) or "no .yaml files"}'
        )
    if path.resolve() in seen:
        raise ConfigError(
            f'{path}: `base:` leads back to a file already read: {" -> ".join(map(str, seen))}'
        )
    read.append(path)
    if len(read) > MOST_FILES:
        raise ConfigError(f'{path}: `base:` leads to more than {MOST_FILES} files')
    tree = read_yaml(path, ConfigError)
    bases = tree.pop('base', None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not (
        isinstance(bases, list)
        and all(isinstance(base, str) and len(base) < 1000 for base in bases)
    ):
        raise ConfigError(
            f"{path}: key 'base' is {repr(bases)[:200]}; expected a file name, or a list of them"
        )
    below = []
    for base in bases:
        below += _yaml_layers(path.parent / base, (*seen, path.resolve()), read)
    return [*below, (path, tree)]


def _literal(tree, source=''):
    """The tree with its text such that OmegaConf takes it for text: ${...} is filled in nowhere.

    Raises:
        ConfigError: text that means 'not set' to OmegaConf, ???.
    """
    if isinstance(tree, dict):
        return {name: _literal(value, source) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_literal(value, source) for value in tree]
    if not isinstance(tree, str):
        return tree
    if re.fullmatch(r'\\*\?\?\?', tree):
        raise ConfigError(
            f"{source}: '{tree}' says that a value is missing: give it, or leave the key out"
        )
    # a backslash makes it text, and is itself doubled before
    return re.sub(r'(\\*)\$\{', r'\1\1\\${', tree)


def _merge(config, layer, source):
    """OmegaConf.merge with messages that name the source, the key and what is valid."""
    for key, value in _leaves(layer):
        _check_known(key, value, source)
    try:
        return OmegaConf.merge(config, OmegaConf.create(_literal(layer, source)))
    # TypeError: a group where a list is expected
    except (OmegaConfBaseException, TypeError) as error:
        key = getattr(error, 'full_key', '') or ''
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f'{source}: ' + (f"key '{key}': " if key else '') + reason + _type_hint(key)
        ) from None


def _together(trees):
    """Nested dicts as one, of which later ones win."""
    merged = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = _together([merged[key], value]) if both else value
    return merged


def _leaves(tree, prefix=''):
    for key, value in tree.items():
        name = f'{prefix}{key}'
        yield name, value
        if isinstance(value, dict):
            yield from _leaves(value, f'{name}.')


def _field_type(key):
    """The type of a dotted key in the schema, str for one inside a free dict; None for one that is
    not there."""
    where = Config
    for part in key.split('.'):
        if is_dataclass(where):
            where = {f.name: f.type for f in fields(where)}.get(part)
        else:
            where = str if where == dict[str, str] else None
    return where


def _check_known(key, value, source):
    """Raise ConfigError unless every part of the dotted key is a field of the schema."""
    where = Config
    parts = key.split('.')
    for depth, part in enumerate(parts):
        if not is_dataclass(where):  # inside a free dict such as data.suffix
            return
        known = {f.name: f.type for f in fields(where)}
        if part not in known:
            parent = '.'.join(parts[:depth]) or 'the top level'
            raise ConfigError(f"{source}: unknown key '{key}'; {parent} has: {', '.join(known)}")
        where = known[part]
    if where is str and isinstance(value, bool | int | float):
        raise ConfigError(
            f"{source}: key '{key}' is text, but YAML reads what is there as {value!r}; put it in"
            ' quotes'
        )
    if str(where).startswith('list') and (
        not isinstance(value, list) or any(isinstance(item, list | dict) for item in value)
    ):
        raise ConfigError(
            f"{source}: key '{key}' is {value!r}; expected a list, such as [{value}]"
            f' (expected {where})'
        )
    if is_dataclass(where) and not isinstance(value, dict):
        raise ConfigError(
            f"{source}: key '{key}' is a group, found {value!r}; "
            f'set one of its keys: {", ".join(f.name for f in fields(where))}'
        )


def _type_hint(key):
    found = _field_type('.'.join(part.split('[')[0] for part in key.split('.')))
    # list[int] is no type: its name is just list
    expected = found.__name__ if isinstance(found, type) else found
    return f' (expected {expected})' if found else ''


@lru_cache(maxsize=1)
def _schema():
    """`Config` with its defaults, as OmegaConf has it; merging copies it."""
    return OmegaConf.structured(Config)


def _merged(layers, name):
    """Schema and layers, (source, tree) each, merged, checked and frozen; `name` names a config
    that has no name."""
    schema, layers = _schema(), list(layers)
    try:
        config = _merge(schema, _together(layer for _, layer in layers), '')
    except ConfigError:
        config = schema
        for source, layer in layers:  # one by one, which takes long: the message names the source
            config = _merge(config, layer, source)
    if OmegaConf.is_missing(config.data, 'collection'):
        raise ConfigError(
            "key 'data.collection' is not set: name the collection's folder below ROOTPATH"
        )
    if not config.name:
        config.name = _literal(name or config.data.collection)
    _check(config)
    OmegaConf.set_readonly(config, True)
    return config


def _check(config):
    """Raise ConfigError at the first impossible value or combination."""
    text, visual, loss, train = config.text, config.visual, config.loss, config.train

    def require(condition, key, valid):
        if not condition:
            value = OmegaConf.select(config, key)
            raise ConfigError(
                f"key '{key}' is {shown(value) if isinstance(value, str | int) else value}; {valid}"
            )

    for key, value in _leaves(config_to_dict(config)):
        require(
            not isinstance(value, float) or math.isfinite(value), key, 'expected a finite number'
        )
        require(
            not isinstance(value, int) or abs(value) < LARGEST, key, 'no number here is that large'
        )
    for key, choices in (
        ('text.pooling', POOLINGS),
        ('visual.pooling', POOLINGS),
        ('text.score_scale', SCORE_SCALES),
        ('visual.score_scale', SCORE_SCALES),
        ('visual.kind', VISUAL_KINDS),
        ('discriminator.kind', DISCRIMINATORS),
        ('discriminator.pooling', ('padded_mean', 'mean')),
        ('compute.precision', PRECISIONS),
        ('compute.attention', ATTENTIONS),
        ('compute.image_cache', IMAGE_CACHES),
        ('loss.contrastive', CONTRASTIVE),
        ('loss.teacher', TEACHERS),
        ('train.schedule', SCHEDULES),
        ('train.select', SELECT),
        ('data.missing', MISSING_ITEMS),
        ('eval.ties', ('pessimistic', 'mean')),
    ):
        require(
            OmegaConf.select(config, key) in choices, key, f'valid values: {", ".join(choices)}'
        )
    for key in (
        'text.hidden',
        'text.heads',
        'text.qk_width',
        'text.positions',
        'visual.hidden',
        'visual.heads',
        'visual.qk_width',
        'visual.max_frames',
        'visual.positions',
        'space.dim',
        'train.batch_size',
        'train.epochs',
        'train.halve_wait',
        'compute.score_memory',
        'eval.val_batch_size',
        'eval.test_batch_size',
        'data.task',
    ):
        require(OmegaConf.select(config, key) >= 1, key, 'expected a whole number of at least 1')
    for key in ('text.dropout', 'text.bert_dropout', 'visual.dropout', 'space.dropout'):
        require(0 <= OmegaConf.select(config, key) < 1, key, 'expected a probability, 0 <= p < 1')
    for key in ('train.lr', 'discriminator.lr', 'loss.temperature', 'loss.smooth_l1_beta'):
        require(OmegaConf.select(config, key) > 0, key, 'expected a number above 0')
    for key in ('train.lr_decay', 'train.halve_factor'):
        require(0 < OmegaConf.select(config, key) <= 1, key, 'expected a factor, 0 < f <= 1')
    for key in (
        'train.patience',
        'train.grad_clip',
        'train.bert_lr',
        'train.workers',
        'visual.feature_dim',
        'loss.margin',
        'compute.micro_batch',
        *(f'loss.weights.{term}' for term in TERMS),
    ):
        require(OmegaConf.select(config, key) >= 0, key, 'expected 0 or more')
    require(0 <= train.warmup < 1, 'train.warmup', 'expected a share of the steps, 0 <= s < 1')
    require(0 <= train.back_as_en <= 1, 'train.back_as_en', 'expected a probability in [0, 1]')
    require(0 <= loss.teacher_momentum < 1, 'loss.teacher_momentum', 'expected a share, 0 <= m < 1')
    require(
        0 <= train.val_weight <= 1,
        'train.val_weight',
        'expected a share of the English branch in [0, 1]',
    )
    require(
        len(config.eval.weights) > 0 and all(0 <= w <= 1 for w in config.eval.weights),
        'eval.weights',
        'expected at least one weight, each in [0, 1]',
    )
    require(
        all(0 <= w <= 1 for w in config.eval.weight_grid),
        'eval.weight_grid',
        'expected weights in [0, 1]',
    )
    require(0 <= config.data.noise <= 1, 'data.noise', 'expected a rate from 0 to 1')
    require(
        any(loss.weights[term] > 0 for term in ('triplet_en', 'triplet_tgt')),
        'loss.weights',
        'nothing ties text to images: set triplet_en or triplet_tgt above 0',
    )
    require(0 <= train.seed < 2**32, 'train.seed', 'expected a whole number, 0 <= seed < 2^32')
    require(
        train.batch_size >= 2,
        'train.batch_size',
        'expected at least 2: the other pairs are the negatives',
    )
    for group in ('text', 'visual'):
        if group == 'text' or visual.kind == 'frames':
            part = config[group]
            require(
                part.hidden % part.heads == 0,
                f'{group}.hidden',
                f'not divisible by {group}.heads={part.heads}',
            )
            require(
                part.qk_width % part.heads == 0,
                f'{group}.qk_width',
                f'not divisible by {group}.heads={part.heads}',
            )
    require(text.positions >= 2, 'text.positions', 'expected at least 2: [CLS] and [SEP]')
    require(
        len(set(text.trained_layers)) == len(text.trained_layers)
        and all(n >= 0 for n in text.trained_layers),
        'text.trained_layers',
        'expected different layer numbers, counted from 0',
    )
    if visual.kind == 'frames':
        require(
            bool(config.data.frames),
            'data.frames',
            "visual.kind=frames needs the folder's template",
        )
        require(
            visual.max_frames <= visual.positions,
            'visual.max_frames',
            f'there are only visual.positions={visual.positions} learned positions',
        )
        if config.data.images:
            raise ConfigError(
                f"key 'visual.kind' is 'frames', but data.images={config.data.images!r} makes "
                f'{config.data.collection} an image collection; valid values there: pooled, clip'
            )
    elif visual.kind == 'pooled':
        for split in SPLITS:
            require(
                bool(config.data.pooled[split]) and bool(config.data.ids[split]),
                f'data.pooled.{split}',
                f'visual.kind=pooled needs feature files and data.ids.{split}; '
                f'{config.data.collection} may be a video collection (visual.kind=frames)',
            )
    else:
        require(
            bool(config.data.images),
            'data.images',
            f'visual.kind=clip needs a template such as images/{{id}}.jpg; {config.data.collection}'
            ' may be a video collection (visual.kind=frames)',
        )
        require('{id}' in config.data.images, 'data.images', 'expected a template with {id} in it')
    if visual.kind != 'clip':
        require(
            not visual.train_clip,
            'visual.train_clip',
            f'visual.kind={visual.kind} reads features, there is no CLIP to train: valid value'
            ' then: false',
        )
        require(
            config.compute.image_cache == 'none',
            'compute.image_cache',
            f'visual.kind={visual.kind} reads features, not images: valid value then: none',
        )
    require(
        config.compute.image_cache != 'embeddings' or not visual.train_clip,
        'compute.image_cache',
        'visual.train_clip changes the embeddings in every step: valid values then: none, pixels',
    )
    tasks = {'1', *config.data.train_prefix, *(key.split('/')[0] for key in config.data.suffix)}
    require(
        str(config.data.task) in tasks,
        'data.task',
        f'valid values for {config.data.collection}: {", ".join(sorted(tasks))}',
    )
    for key in ('name', 'data.collection', 'data.lang'):  # parts of paths, and of the run folder's
        value = OmegaConf.select(config, key)
        require(
            '/' not in value and value.strip(' .') and value.isprintable(),
            key,
            "expected a folder's or a language's name, without / and control characters",
        )
    _check_templates(config)


def _check_templates(config):
    """Every template must be formattable with the fields that `Data` documents."""
    allowed = ('c', 'p', 'lang', 'split', 't', 'feature', 'id')
    templates = {
        f'data.captions.{split}.{role}': value
        for split, roles in config_to_dict(config.data.captions).items()
        for role, value in roles.items()
    }
    templates.update({'data.frames': config.data.frames, 'data.images': config.data.images})
    for key in ('pooled', 'ids'):
        for split in SPLITS:
            templates.update(
                {f'data.{key}.{split}[{i}]': t for i, t in enumerate(config.data[key][split])}
            )
    for key, template in templates.items():
        try:
            for _, name, width, conversion in string.Formatter().parse(template):
                # {c:>9999} makes 9,999 blanks
                if name is not None and (name not in allowed or width or conversion):
                    raise ValueError(f'cannot fill in {name!r}')
        except ValueError as error:
            raise ConfigError(
                f"key '{key}' is {template!r}: {error}; fields: "
                f'{", ".join(f"{{{name}}}" for name in allowed)}; a brace that is text is written'
                ' twice'
            ) from None


def config_changes(stored, asked, ignored=()):
    """How the config asked for differs from the stored one, 'key: old -> new' a key; a feature
    width of 0 fits any."""
    stored, asked = flatten(stored), flatten(asked)
    return [
        f'{key}: {stored.get(key)!r} -> {asked.get(key)!r}'
        for key in sorted(stored.keys() | asked.keys())
        if stored.get(key) != asked.get(key)
        and key not in ignored
        and not (key == 'visual.feature_dim' and asked.get(key) == 0)
    ]


def flatten(tree, prefix='', separator='.'):
    """Nested dicts as one dict of dotted keys; an empty dict stays a value."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f'{prefix}{key}{separator}', separator))
        else:
            flat[f'{prefix}{key}'] = value
    return flat
