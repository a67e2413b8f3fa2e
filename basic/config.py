"""The configuration: one typed schema, merged from three places and checked before anything else
runs.

    schema (this file)  <-  configs/<name>.yaml, on top of its `base:` file (or list of files)
                        <-  further files, such as configs/ablation/<name>.yaml, in their order  <-
                        key=value

An unknown key, a wrong type or an impossible combination raises `ConfigError` in the first second,
naming the key and what would be valid. Every number that the paper or its released code states is a
field here, with its source. A field says what it may hold and what changing it does, see
basic/option.py; layers are read and merged in basic/merge.py.
"""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf

from basic.combinations import impossible
from basic.errors import ConfigError
from basic.foreign import plain_tree
from basic.languages import with_languages
from basic.merge import flatten, literal, merge, option_layers, yaml_layers
from basic.option import (
    CASING,
    COUNT,
    FACTOR,
    LANGUAGES,
    LAYERS,
    MOMENTUM,
    NAME,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    RATE,
    SEED,
    SHARE,
    SHARES,
    TEMPLATE,
    at_least,
    check_values,
    option,
    options_of,
    refusal,
)

POOLINGS = ('padded_mean', 'mean', 'max')
SCORE_SCALES = ('value_width', 'key_width')
VISUAL_KINDS = ('frames', 'pooled', 'clip')
DISCRIMINATORS = ('strong', 'not-so-weak', 'weak')
PRECISIONS = ('fp32', 'tf32', 'bf16')
SPLITS = ('train', 'val', 'test')
# Values that leave it to the data or the model; what a run finds is stored in their place.
FOUND = (('visual.feature_dim', 0), ('text.lowercase', 'auto'))
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


@dataclass
class TrainCaptions:
    """Caption files of the training split; the templates' fields are explained at `Data`."""

    en: str = option('{c}train.caption.txt', TEMPLATE)  # human English
    tgt: str = option('{c}train_google_enc2{lang}.caption.txt', TEMPLATE)  # its machine translation
    # the translation, machine-translated back
    back: str = option('{c}train_google_enc2{lang}2enc.caption.txt', TEMPLATE)


@dataclass
class ValCaptions:
    """Caption files of the validation split."""

    # machine translation of the target caption
    en: str = option('{c}val_google_{lang}2enc.caption.txt', TEMPLATE)
    tgt: str = option('{c}val_{lang}.caption.txt', TEMPLATE)  # human target language


@dataclass
class TestCaptions:
    """Caption files of the test split."""

    # machine translation of the target caption
    en: str = option('{c}test_google_{lang}2enc.caption.txt', TEMPLATE)
    tgt: str = option('{c}test_{lang}.caption.txt', TEMPLATE)  # human target language


@dataclass
class Captions:
    """Caption files, relative to ROOTPATH/<collection>/TextData."""

    train: TrainCaptions = field(default_factory=TrainCaptions)
    val: ValCaptions = field(default_factory=ValCaptions)
    test: TestCaptions = field(default_factory=TestCaptions)


@dataclass
class SplitFiles:
    """A list of candidate paths for each split; the first that exists is used."""

    train: list[str] = option([], TEMPLATE)
    val: list[str] = option([], TEMPLATE)
    test: list[str] = option([], TEMPLATE)


@dataclass
class Data:
    """Where the captions and the visual items lie.

    File names are templates. Their fields: {c} the collection's name as the copy at hand spells it,
    {p} the training captions' prefix, {lang} the target language's tag, {split} train/val/test, {t}
    the task's suffix, {feature} `visual.feature` (tried with and without its underscores). In
    `images` and `media`, {id} is the visual item's id.
    """

    # folder below ROOTPATH, and the prefix {c} of file names
    collection: str = option(MISSING, NAME)
    # other spellings of the collection to accept in both places
    aliases: list[str] = field(default_factory=list)
    # target language, as the file names write it; or several: one model for all of them
    lang: str = option('zh', LANGUAGES)
    # several languages: which one a training pair has in an epoch: balanced (each language equally
    # often in an epoch, each pair once in each language in as many epochs) | random
    lang_sampling: str = option('balanced', ('balanced', 'random'))
    task: int = option(1, COUNT)  # Multi-30K's task; other collections have one task only
    # {p} by task; {c} for a task not listed
    train_prefix: dict[str, str] = field(default_factory=dict)
    # {t} by "<task>/<lang>"; empty if not listed
    suffix: dict[str, str] = field(default_factory=dict)
    captions: Captions = field(default_factory=Captions)
    # BigFile folder of frame features, for visual.kind=frames
    frames: str = option('FeatureData/{feature}', TEMPLATE)
    # .npy of one row an image, for visual.kind=pooled
    pooled: SplitFiles = field(default_factory=SplitFiles)
    # the image lists: row i of the .npy is line i here
    ids: SplitFiles = field(default_factory=SplitFiles)
    # raw images, for visual.kind=clip; .JPG, .png ... are found where it says .jpg
    images: str = option('', TEMPLATE, effect='place')
    # what reports show of items of other kinds, such as videos/{id}.mp4 (other endings are found)
    # or frames/{id} (folders of frames); empty: as `images`
    media: str = option('', TEMPLATE, effect='place')
    # captions whose visual item is missing: error | skip (left out)
    missing: str = option('error', ('error', 'skip'))
    # a record: the rate of corrupted training translations; names the run's folder
    noise: float = option(0.0, RATE)


@dataclass
class Text:
    """Text encoder: BERT, linear, positions, one attention block; the same for every branch."""

    # hub name, or a local folder as transformers saves it; see "Other encoders" in
    # configs/README.md
    bert: str = option('bert-base-multilingual-cased', effect='place')
    # False: take the architecture from `bert`, start from random weights
    pretrained: bool = option(True, effect='place')
    # lower-case and strip accents: auto (as released with the paper's BERT, though its vocabulary
    # is cased; no other model) | true | false (the tokenizer as it is)
    lowercase: bool | str = option('auto', CASING)
    clean_en: bool = True  # as released: English keeps A-Za-z0-9 only, and a full stop is appended
    # the same for back-translations, which the released code leaves as they are
    clean_back: bool = False
    # of BERT; others are frozen
    trained_layers: list[int] = option([5, 6, 7, 8, 9, 10, 11], LAYERS)
    train_embeddings: bool = False  # BERT's embeddings; the paper freezes them
    # all of BERT, however deep, embeddings included, whatever the two above say
    train_all: bool = False
    bert_dropout: float = option(0.1, PROBABILITY)  # inside BERT, in frozen layers too
    hidden: int = option(768, COUNT)  # width of the attention block
    heads: int = option(8, COUNT)  # of the attention block; they divide `hidden` and `qk_width`
    qk_width: int = option(512, COUNT)  # width of queries and keys; the values are `hidden` wide
    # as released sqrt(hidden / heads); key_width: sqrt(qk_width / heads)
    score_scale: str = option('value_width', SCORE_SCALES)
    # learned positions; longer captions are cut
    positions: int = option(250, at_least(2, ': [CLS] and [SEP]'))
    # after BERT: of the linear layer, the positions and the attention block
    dropout: float = option(0.1, PROBABILITY)
    # as released: the mean includes padding; `mean` and `max` leave it out
    pooling: str = option('padded_mean', POOLINGS)


@dataclass
class Visual:
    """Visual encoder: frame features, one pooled feature an image, or raw images through CLIP."""

    kind: str = option('frames', VISUAL_KINDS)  # frames | pooled | clip, in this order
    feature: str = 'i3d_kinetics'  # name of the feature, for `frames` and `pooled`
    feature_dim: int = option(0, NOT_NEGATIVE)  # its width; 0: as found in the data
    # `frames`: width of the attention block; `clip`: width after the linear layer
    hidden: int = option(1024, COUNT)
    heads: int = option(8, COUNT)  # `frames`: of the attention block
    qk_width: int = option(512, COUNT)  # `frames`: width of queries and keys
    score_scale: str = option('value_width', SCORE_SCALES)  # as released, see text.score_scale
    max_frames: int = option(64, COUNT)  # videos are cut to their first frames
    positions: int = option(80, COUNT)  # learned positions
    # `frames`: of the linear layer, the positions and the attention block
    dropout: float = option(0.1, PROBABILITY)
    pooling: str = option('padded_mean', POOLINGS)  # over frames
    # `clip`: hub name or local folder of CLIP or a like image tower, see configs/README.md
    clip: str = option('openai/clip-vit-base-patch32', effect='place')
    # False: CLIP's architecture with random weights
    clip_pretrained: bool = option(True, effect='place')
    train_clip: bool = False  # as released no gradient reaches CLIP's image tower


@dataclass
class Space:
    """Projections to the common space (linear, batch norm, dropout, L2 normalisation)."""

    dim: int = option(1536, COUNT)  # width of the common space
    dropout: float = option(0.2, PROBABILITY)  # after the batch norm


@dataclass
class Discriminator:
    """Language discriminator on BERT's token outputs."""

    # `strong` for VATEX, `not-so-weak` for the others, `weak`
    kind: str = option('strong', DISCRIMINATORS)
    lr: float = option(1e-3, POSITIVE)  # of its own Adam
    relu_skip: bool = True  # as released a residual block's skip carries the ReLU'd input
    # as released the average includes padding; `mean` leaves it out
    pooling: str = option('padded_mean', ('padded_mean', 'mean'))


@dataclass
class Weights:
    """Weight of each term; 0 leaves the term, and what only it needs, out."""

    triplet_en: float = option(1.0, NOT_NEGATIVE)  # English and visual
    triplet_tgt: float = option(0.6, NOT_NEGATIVE)  # translation and visual: the paper's tri_alpha
    kd_sim: float = option(0.4, NOT_NEGATIVE)  # similarity distillation: dtl_beta
    kd_feat: float = option(0.1, NOT_NEGATIVE)  # feature distillation: l1_gama
    triplet_back: float = option(0.5, NOT_NEGATIVE)  # English and back-translation: back_w
    # not the paper's: back-translation and visual, as `contrastive` says
    back_visual: float = option(0.0, NOT_NEGATIVE)
    adversarial: float = option(0.001, NOT_NEGATIVE)  # language adversary: scale


@dataclass
class Loss:
    """Losses; L is the weighted sum of the terms."""

    weights: Weights = field(default_factory=Weights)
    margin: float = option(0.2, NOT_NEGATIVE)  # triplet margin, in cosine
    hardest: bool = True  # hardest negative in the batch; False: the sum over all negatives
    # as released captions of one visual item are each other's negatives
    mask_same_visual: bool = False
    temperature: float = option(0.07, POSITIVE)  # of the similarity distillation
    smooth_l1_beta: float = option(4.0, POSITIVE)  # of the feature distillation
    # as released the teacher's distribution also moves the visual side
    detach_teacher_visual: bool = False
    # as released feature distillation also moves the cross branch
    detach_cross_feature: bool = False
    # what triplet_en and triplet_tgt compute: triplet | infonce (see loss.infonce)
    contrastive: str = option('triplet', ('triplet', 'infonce'))
    # what computes the cross branch: self | momentum (see model.MomentumTeacher)
    teacher: str = option('self', ('self', 'momentum'))
    # share of the momentum teacher that stays in a step
    teacher_momentum: float = option(0.999, MOMENTUM)


@dataclass
class Train:
    """Optimisation and schedule."""

    seed: int = option(1, SEED)  # of the weights, the order of the pairs and dropout
    epochs: int = option(50, COUNT, effect='length')  # at most
    # caption pairs
    batch_size: int = option(128, at_least(2, ': the other pairs are the negatives'))
    lr: float = option(1e-4, POSITIVE)  # Adam, encoders and projections
    bert_lr: float = option(0.0, NOT_NEGATIVE)  # of BERT's trained layers; 0: as `lr`
    # released: per epoch, by the four options after `warmup` | cosine: per step, over exactly
    # `epochs` epochs, with a linear warm-up (see basic.schedule.CosineSchedule)
    schedule: str = option('released', ('released', 'cosine'))
    # cosine: share of all steps over which the rate rises
    warmup: float = option(0.1, PROBABILITY)
    lr_decay: float = option(0.99, FACTOR)  # after each epoch
    halve_factor: float = option(0.5, FACTOR)  # after an epoch without improvement, too ...
    # ... if this many epochs passed since the start or the last halving
    halve_wait: int = option(3, COUNT)
    # stop after more epochs than this without improvement
    patience: int = option(10, NOT_NEGATIVE, effect='length')
    # global L2 norm over encoders and projections; 0: none
    grad_clip: float = option(2.0, NOT_NEGATIVE)
    # batches made at once, by threads, images by processes; 0: none ahead
    workers: int = option(2, NOT_NEGATIVE, effect='speed')
    # probability that the English branch reads a pair's back-translation in place of its human
    # caption, drawn anew in each epoch
    back_as_en: float = option(0.0, RATE)
    val_weight: float = option(0.2, SHARE)  # w of the English branch in validation
    # what chooses the model: t2v (as released, the t2v recalls at `val_weight`, added) | sumr (SumR
    # at the best w of validation)
    select: str = option('t2v', ('t2v', 'sumr'))
    # keep last.pt, from which a longer training can go on, after the test
    keep_last: bool = option(False, effect='speed')


@dataclass
class Compute:
    """How it is computed: changes speed, memory and rounding, not what is computed."""

    # fp32 | tf32 (matrix products on a GPU) | bf16 (autocast; losses in float32)
    precision: str = option('fp32', PRECISIONS)
    # fused (SDPA) | eager (written out); auto: see basic.layers.AttentionBlock
    attention: str = option('auto', ('auto', 'fused', 'eager'), effect='rounding')
    # torch.compile of BERT and the visual encoder, for any length
    compile: bool = option(False, effect='rounding')
    # pairs encoded at once, the negatives still being the batch's; 0: all
    micro_batch: int = option(0, NOT_NEGATIVE, effect='rounding')
    # recompute BERT's layers in the backward pass instead of keeping them
    checkpointing: bool = option(False, effect='rounding')
    # clip: keep each image as pixels (uint8) or as the frozen tower's embedding
    image_cache: str = option('none', ('none', 'pixels', 'embeddings'), effect='speed')
    # keep on disk what BERT's layers below the first trained one make of each caption, computed
    # once and without dropout
    frozen_cache: bool = False
    # MiB for blocks of scores and embeddings; less is slower, not different
    score_memory: int = option(1024, COUNT, effect='speed')


@dataclass
class Eval:
    """Scoring."""

    val_batch_size: int = option(128, COUNT)  # with padded_mean the batch matters
    test_batch_size: int = option(64, COUNT)  # as released, not that of validation
    # w of the English branch
    weights: list[float] = option([1.0, 0.8, 0.5, 0.2, 0.0], SHARES)
    # w to choose from on validation; empty: eval.weights
    weight_grid: list[float] = option([], SHARES)
    # rank among equal scores: pessimistic (last) | mean (middle)
    ties: str = option('pessimistic', ('pessimistic', 'mean'))


@dataclass
class Config:
    """Everything a run depends on, except where its data lie."""

    name: str = option('', NAME)  # names the run's folder; the config file's name if empty
    data: Data = field(default_factory=Data)
    text: Text = field(default_factory=Text)
    visual: Visual = field(default_factory=Visual)
    space: Space = field(default_factory=Space)
    discriminator: Discriminator = field(default_factory=Discriminator)
    loss: Loss = field(default_factory=Loss)
    train: Train = field(default_factory=Train)
    compute: Compute = field(default_factory=Compute)
    eval: Eval = field(default_factory=Eval)


# ----------------------------------------------------------------------------------------- loading


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
        found = yaml_layers(path)
        layers += found
        own = [tree['name'] for _, tree in found if tree.get('name')]
        names.append(own[-1] if own else Path(path).stem)
    if len(paths) > 1:
        layers.append((' with '.join(map(str, paths)), {'name': '_'.join(map(str, names))}))
    return _finished([*layers, *option_layers(Config, overrides)], name=names[0] if names else '')


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
    layer = source, plain_tree(tree, source, ConfigError)
    return _finished([layer, *option_layers(Config, overrides)], name='')


def config_to_dict(config):
    """The config as plain dicts, lists, numbers and strings."""
    return OmegaConf.to_container(
        config if isinstance(config, DictConfig) else OmegaConf.structured(config), resolve=True
    )


def _finished(layers, name):
    """Schema and layers merged, checked and frozen; `name` names a config that has no name."""
    config = merge(Config, [(source, with_languages(tree, source)) for source, tree in layers])
    if OmegaConf.is_missing(config.data, 'collection'):
        raise ConfigError(
            "key 'data.collection' is not set: name the collection's folder below ROOTPATH"
        )
    if not config.name:
        config.name = literal(name or config.data.collection)
    check_values(Config, config_to_dict(config))
    for key, words in impossible(config):
        raise refusal(key, OmegaConf.select(config, key), words)
    OmegaConf.set_readonly(config, True)
    return config


# ------------------------------------------------------------------------- what a config asks for


def reads(weights):
    """The set of what the loss terms with a weight above 0 read, see TERMS."""
    return {part for term, parts in TERMS.items() if weights[term] > 0 for part in parts}


def keys_with(*effects):
    """The dotted keys of the fields with one of these effects, see basic.option.EFFECTS."""
    return tuple(
        key
        for key, each in options_of(Config).items()
        if each.metadata.get('effect', 'result') in effects
    )


def config_changes(stored, asked, ignored=()):
    """How the config asked for differs from the stored one, 'key: old -> new' a key; what is left
    to be found (FOUND) fits any."""
    stored, asked = flatten(stored), flatten(asked)
    ignored = ignorable(ignored, stored)
    return [
        f'{key}: {stored.get(key)!r} -> {asked.get(key)!r}'
        for key in sorted(stored.keys() | asked.keys())
        if stored.get(key) != asked.get(key)
        and key not in ignored
        and (key, asked.get(key)) not in FOUND
    ]


def ignorable(keys, stored):
    """The keys that may differ indeed: the rates of a cosine schedule depend on its length.

    Args:
        keys: such as `keys_with` gives; stored: a config as one dict of dotted keys.
    """
    fixed = ('train.epochs',) if stored.get('train.schedule') == 'cosine' else ()
    return tuple(key for key in keys if key not in fixed)
