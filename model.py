"""NRCCR's model: visual encoders, text encoder with its cross branch, projections, language discriminators.

N pairs, L tokens, F frames, D width of a feature or of BERT's tokens, H hidden width, E common space.
Masks are (N, L) or (N, F), 1 on real positions. Modules take explicit arguments; only `build_model` sees the config.
"""
import json
import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from basic import runtime  # noqa: F401  (lets transformers import beside a torchvision of another build)
from basic.layers import AttentionBlock, InputProjection, LearnedPositions, pool

from transformers import AutoConfig, AutoModel, CLIPVisionConfig, CLIPVisionModelWithProjection

LAYER_LISTS = ('encoder.layer', 'transformer.layer', 'encoder.layers', 'layers')  # where BERT-like models keep them


class Encoded(NamedTuple):
    """A training batch in the common space: (N, E) each, L2-normalised; BERT's tokens (N, L, D) for the discriminator.

    `cross` and `back` are None where no loss term needs them.
    """
    visual: torch.Tensor
    en: torch.Tensor
    tgt: torch.Tensor
    cross: torch.Tensor | None
    back: torch.Tensor | None
    tokens_en: torch.Tensor
    mask_en: torch.Tensor
    tokens_tgt: torch.Tensor
    mask_tgt: torch.Tensor


class VideoEncoder(nn.Module):
    """Frame features -> one vector a video (METHOD: visual encoders, video)."""

    def __init__(self, *, dim, hidden, heads, qk_width, score_scale, positions, dropout, pooling):
        super().__init__()
        self.input = InputProjection(dim=dim, hidden=hidden, dropout=dropout)
        self.positions = LearnedPositions(positions=positions, hidden=hidden, dropout=dropout)
        self.block = AttentionBlock(hidden=hidden, heads=heads, qk_width=qk_width, score_scale=score_scale,
                                    dropout=dropout)
        self.pooling = pooling
        self.width = hidden

    def forward(self, frames, mask):
        """frames (N, F, D), mask (N, F) -> (N, H)."""
        x = self.positions(self.input(frames))                 # (N, F, H)
        return pool(self.block(x, mask), mask, self.pooling)


class FeatureEncoder(nn.Module):
    """One pooled feature an image -> ReLU(linear): (N, D) -> (N, D)."""

    def __init__(self, *, dim):
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.width = dim

    def forward(self, features, mask=None):
        return F.relu(self.linear(features))


class ClipEncoder(nn.Module):
    """Images through CLIP's image tower, then a linear layer: (N, 3, S, S) -> (N, H).

    Args:
        clip: transformers' CLIPVisionModelWithProjection.
        hidden: width after the linear layer.
        train_clip: let gradients reach the tower (as released: no).
    """

    def __init__(self, *, clip, hidden, train_clip):
        super().__init__()
        self.clip = clip.requires_grad_(train_clip)
        self.train_clip = train_clip
        self.linear = nn.Linear(clip.config.projection_dim, hidden)
        self.width = hidden

    def forward(self, pixels, mask=None):
        with torch.set_grad_enabled(self.train_clip and torch.is_grad_enabled()):
            image = self.clip(pixel_values=pixels).image_embeds  # (N, projection), not normalised
        return self.linear(image)


class TextEncoder(nn.Module):
    """BERT, then linear, positions and one attention block that every branch shares.

    Args:
        bert: a BERT-like transformers model; `trained_layers` of it are trained (counted from 0), its embeddings if
            `train_embeddings`, the rest is frozen.
        the rest: as `basic.config.Text` documents.
    Raises:
        ValueError: a layer number that the model does not have.
    """

    def __init__(self, *, bert, trained_layers, train_embeddings, hidden, heads, qk_width, score_scale, positions,
                 dropout, pooling):
        super().__init__()
        self.bert = bert.requires_grad_(False)
        layers = bert_layers(bert)
        for number in trained_layers:
            if number >= len(layers):
                raise ValueError(f"key 'text.trained_layers' names layer {number}, but this BERT has {len(layers)} "
                                 f'(0 to {len(layers) - 1})')
            layers[number].requires_grad_(True)
        if train_embeddings:
            bert.get_submodule('embeddings').requires_grad_(True)
        self.input = InputProjection(dim=bert.config.hidden_size, hidden=hidden, dropout=dropout)
        self.positions = LearnedPositions(positions=positions, hidden=hidden, dropout=dropout)
        self.block = AttentionBlock(hidden=hidden, heads=heads, qk_width=qk_width, score_scale=score_scale,
                                    dropout=dropout)
        self.pooling = pooling
        self.longest = bert_positions(bert)

    def tokens(self, branches, together=None):
        """BERT's token outputs of several branches, in one pass or in one a branch.

        Padding is masked as a key in BERT, so a branch's output at its own positions does not depend on how far the
        pass is padded: each branch is cut back to its own length. A GPU gains from fewer, larger products; a CPU is
        bound by arithmetic, and would pay for padding every branch to the longest one.

        Args:
            branches: list of (ids (N, L_i) int64, mask (N, L_i)).
            together: in one pass; None: if the branches are on a GPU.
        Returns:
            list of (N, L_i, D).
        Raises:
            ValueError: a branch longer than BERT's positions.
        """
        longest = max(ids.shape[1] for ids, _ in branches)
        if longest > self.longest:
            raise ValueError(f'a caption of {longest} tokens, but this BERT has only {self.longest} positions: set '
                             f'text.positions={self.longest} or less, then longer captions are cut')
        if together is None:
            together = len(branches) > 1 and branches[0][0].is_cuda
        if not together:
            return [self.bert(input_ids=ids, attention_mask=mask.to(ids.dtype)).last_hidden_state
                    for ids, mask in branches]
        padded = [F.pad(torch.stack([ids, mask.to(ids.dtype)]), (0, longest - ids.shape[1])) for ids, mask in branches]
        ids, mask = torch.cat(padded, dim=1)                   # (branches * N, longest) each
        output = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        parts = output.split([len(ids) for ids, _ in branches])
        return [part[:, :ids.shape[1]] for part, (ids, _) in zip(parts, branches)]

    def inputs(self, tokens):
        """BERT's tokens (N, L, D) -> the attention block's inputs (N, L, H)."""
        return self.positions(self.input(tokens))

    def attend(self, x, mask):
        """The block's inputs (N, L, H) -> one vector a caption (N, H)."""
        return pool(self.block(x, mask), mask, self.pooling)

    def attend_across(self, en, en_mask, tgt, tgt_mask):
        """The cross branch: English queries over the translation, pooled together with the translation's inputs.

        Args:
            en (N, L1, H), tgt (N, L2, H): the two branches' inputs to the block, with their masks.
        Returns:
            (N, H).
        """
        crossed = self.block(en, en_mask, context=tgt, context_mask=tgt_mask)       # (N, L1, H)
        return pool(torch.cat([crossed, tgt], dim=1), torch.cat([en_mask, tgt_mask], dim=1), self.pooling)

    def forward(self, ids, mask):
        """ids (N, L), mask (N, L) -> (N, H)."""
        return self.attend(self.inputs(*self.tokens([(ids, mask)])), mask)


class Projection(nn.Module):
    """To the common space: linear, batch norm, dropout, L2 normalisation; (N, D) -> (N, E)."""

    def __init__(self, *, dim, space, dropout):
        super().__init__()
        self.linear = nn.Linear(dim, space)
        self.norm = nn.BatchNorm1d(space)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        return F.normalize(self.dropout(self.norm(self.linear(x))), dim=-1)


class LinearDiscriminator(nn.Module):
    """`weak`: the average token, then a linear layer to two logits."""

    def __init__(self, *, dim, pooling):
        super().__init__()
        self.model = nn.Linear(dim, 2)
        self.pooling = pooling

    def forward(self, tokens, mask):
        """tokens (N, L, D), mask (N, L) -> logits (N, 2)."""
        return self.model(pool(tokens, mask, self.pooling))


class MlpDiscriminator(LinearDiscriminator):
    """`not-so-weak`: the average token, then an MLP D-256-128-2 with tanh."""

    def __init__(self, *, dim, pooling):
        super().__init__(dim=dim, pooling=pooling)
        self.model = nn.Sequential(nn.Linear(dim, 256), nn.Tanh(), nn.Linear(256, 128), nn.Tanh(), nn.Linear(128, 2))


class ResidualBlock(nn.Module):
    """ReLU, conv5, ReLU, conv5, times 0.3, plus the input; as released (`relu_skip`) plus the ReLU'd input."""

    def __init__(self, *, channels, relu_skip):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, 5, padding=2)
        self.conv2 = nn.Conv1d(channels, channels, 5, padding=2)
        self.relu_skip = relu_skip

    def forward(self, x, keep):
        """x (N, C, L) -> (N, C, L); keep (N, 1, L) is 0 where the convolutions must see nothing, or just 1."""
        rectified = F.relu(x)
        inner = F.relu(self.conv1(rectified * keep))
        return 0.3 * self.conv2(inner * keep) + (rectified if self.relu_skip else x)


class ConvDiscriminator(nn.Module):
    """`strong`: 1x1 convolution to 128, three residual blocks along the sequence, average, linear to two logits.

    As released the convolutions read padding as they read tokens; with the pooling `mean` they see zeros there, which
    is what they see beyond the sequence's end, so that the amount of padding does not change the logits.
    """

    def __init__(self, *, dim, pooling, relu_skip):
        super().__init__()
        self.entry = nn.Conv1d(dim, 128, 1)
        self.blocks = nn.ModuleList(ResidualBlock(channels=128, relu_skip=relu_skip) for _ in range(3))
        self.model = nn.Linear(128, 2)
        self.pooling = pooling

    def forward(self, tokens, mask):
        """tokens (N, L, D), mask (N, L) -> logits (N, 2)."""
        keep = 1 if self.pooling == 'padded_mean' else mask[:, None]         # (N, 1, L)
        x = self.entry(tokens.transpose(1, 2))                               # (N, 128, L)
        for block in self.blocks:
            x = block(x, keep)
        return self.model(pool(x.transpose(1, 2), mask, self.pooling))


class NRCCR(nn.Module):
    """The five parts, and the ways through them.

    Args:
        visual_encoder: (visual, mask) -> (N, W), with its `width` W.
        text_encoder: a TextEncoder of width H.
        space, dropout: width E of the common space and the projections' dropout.
        discriminator: (tokens, mask) -> logits (N, 2).
        use_cross, use_back: whether the training forward computes these branches.
        architecture: plain dict that rebuilds BERT and CLIP without a download, kept for checkpoints.
    """

    def __init__(self, *, visual_encoder, text_encoder, hidden, space, dropout, discriminator, use_cross, use_back,
                 architecture):
        super().__init__()
        self.visual_encoder = visual_encoder
        self.text_encoder = text_encoder
        self.visual_projection = Projection(dim=visual_encoder.width, space=space, dropout=dropout)
        self.text_projection = Projection(dim=hidden, space=space, dropout=dropout)
        self.discriminator = discriminator
        self.use_cross, self.use_back = use_cross, use_back
        self.architecture = architecture

    @property
    def image_size(self):
        """Side of the square images that the visual encoder reads, or 0 if it reads features."""
        return self.architecture['clip']['image_size'] if self.architecture['clip'] else 0

    def main_parameters(self):
        """The trained parameters of encoders and projections: the discriminator has an optimiser of its own."""
        return [p for name, p in self.named_parameters()
                if p.requires_grad and not name.startswith('discriminator.')]

    def encode_visual(self, visual, mask=None):
        """frames (N, F, D) with mask (N, F), features (N, D), or pixels (N, 3, S, S) -> (N, E)."""
        return self.visual_projection(self.visual_encoder(visual, mask))

    def encode_text(self, ids, mask):
        """ids (N, L) int64, mask (N, L) -> (N, E); a branch at a time, both languages alike."""
        return self.text_projection(self.text_encoder(ids, mask))

    def forward(self, batch):
        """A training batch (`data_provider.Batch`) -> Encoded.

        The text projection runs once a branch, in the order en, tgt, cross, back: each call moves its batch norm.
        """
        text, en, tgt, back = self.text_encoder, batch.en, batch.tgt, batch.back
        branches = [en, tgt, back] if self.use_back else [en, tgt]
        tokens = text.tokens([(branch.ids, branch.mask) for branch in branches])    # (N, L, D) a branch
        inputs = [text.inputs(part) for part in tokens]                             # (N, L, H) a branch

        visual = self.encode_visual(batch.visual, batch.visual_mask)
        en_space = self.text_projection(text.attend(inputs[0], en.mask))
        tgt_space = self.text_projection(text.attend(inputs[1], tgt.mask))
        cross_space = back_space = None
        if self.use_cross:
            cross_space = self.text_projection(text.attend_across(inputs[0], en.mask, inputs[1], tgt.mask))
        if self.use_back:
            back_space = self.text_projection(text.attend(inputs[2], back.mask))
        return Encoded(visual=visual, en=en_space, tgt=tgt_space, cross=cross_space, back=back_space,
                       tokens_en=tokens[0], mask_en=en.mask, tokens_tgt=tokens[1], mask_tgt=tgt.mask)


def bert_layers(bert):
    """The list of transformer layers of a BERT-like model; raises ValueError if none of the known places has it."""
    for path in LAYER_LISTS:
        try:
            return bert.get_submodule(path)
        except AttributeError:
            continue
    raise ValueError(f"key 'text.bert': {type(bert).__name__} keeps its layers in none of {', '.join(LAYER_LISTS)}; "
                     'give a BERT-like encoder')


def bert_positions(bert):
    """The longest sequence that the model can read; infinite where its positions are not a table."""
    table = getattr(getattr(bert, 'embeddings', None), 'position_embeddings', None)
    if not isinstance(table, nn.Embedding):
        return math.inf
    reserved = 0 if table.padding_idx is None else table.padding_idx + 1     # RoBERTa counts from there
    return table.num_embeddings - reserved


def build_bert(*, name, pretrained, dropout, architecture=None):
    """The BERT-like encoder, without its pooler.

    Args:
        name: hub name or local folder.
        pretrained: False keeps the architecture and starts from random weights.
        dropout: inside it.
        architecture: its config as a plain dict, from a checkpoint: then nothing is read from `name`.
    Raises:
        ValueError: neither reachable nor in the local cache, or not a folder that transformers can load.
    """
    try:
        if architecture:
            config = AutoConfig.for_model(**architecture)
        else:
            config = AutoConfig.from_pretrained(name)
        for key in ('hidden_dropout_prob', 'attention_probs_dropout_prob', 'dropout', 'attention_dropout',
                    'embedding_dropout', 'mlp_dropout'):     # as the models of LAYER_LISTS call it
            if hasattr(config, key):
                setattr(config, key, dropout)
        if architecture or not pretrained:
            bert = AutoModel.from_config(config)
        else:
            bert = AutoModel.from_pretrained(name, config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ValueError(f"key 'text.bert': cannot load '{name}': {_first_line(error)}\n  Without network and cache, "
                         'give a local folder as transformers saves it (config.json, weights, vocabulary): '
                         'text.bert=FOLDER; with text.pretrained=false it needs no weights') from None
    if getattr(bert, 'pooler', None) is not None:
        bert.pooler = None
    return bert


def build_clip(*, name, pretrained, architecture=None):
    """CLIP's image tower with its projection; arguments and errors as for `build_bert`, keys `visual.clip*`."""
    try:
        if architecture:
            return CLIPVisionModelWithProjection(CLIPVisionConfig(**architecture))
        if pretrained:
            return CLIPVisionModelWithProjection.from_pretrained(name, dtype=torch.float32)
        return CLIPVisionModelWithProjection(CLIPVisionConfig.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise ValueError(f"key 'visual.clip': cannot load '{name}': {_first_line(error)}\n  Without network and "
                         'cache, give a local folder as transformers saves it: visual.clip=FOLDER') from None


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _plain(config):
    """A transformers config as plain data, without what describes files, versions or another task's labels."""
    drop = {'_name_or_path', 'transformers_version', 'architectures', 'dtype', 'torch_dtype', 'id2label', 'label2id'}
    return {key: value for key, value in json.loads(config.to_json_string(use_diff=False)).items() if key not in drop}


def build_model(config, feature_dim=0, architecture=None):
    """The model of a `basic.config.Config`.

    Args:
        config: the checked config.
        feature_dim: width of the data's features, for visual.kind frames and pooled.
        architecture: `NRCCR.architecture` of a checkpoint: BERT and CLIP are rebuilt from it with random weights, to
            be overwritten by the checkpoint's, and nothing is downloaded. None: read them by the config's names.
    Raises:
        ValueError: weights that cannot be found, a layer that does not exist; names the key.
    """
    text, visual, weights = config.text, config.visual, config.loss.weights
    stored = architecture or {'bert': None, 'clip': None, 'feature_dim': feature_dim}
    assert visual.kind == 'clip' or stored['feature_dim'] > 0, 'the caller gives the width of the features'
    bert = build_bert(name=text.bert, pretrained=text.pretrained, dropout=text.bert_dropout,
                      architecture=stored['bert'])
    clip_config = None
    if visual.kind == 'clip':
        clip = build_clip(name=visual.clip, pretrained=visual.clip_pretrained, architecture=stored['clip'])
        clip_config = _plain(clip.config)
        visual_encoder = ClipEncoder(clip=clip, hidden=visual.hidden, train_clip=visual.train_clip)
    elif visual.kind == 'pooled':
        visual_encoder = FeatureEncoder(dim=stored['feature_dim'])
    else:
        visual_encoder = VideoEncoder(
            dim=stored['feature_dim'], hidden=visual.hidden, heads=visual.heads, qk_width=visual.qk_width,
            score_scale=visual.score_scale, positions=visual.positions, dropout=visual.dropout,
            pooling=visual.pooling)
    text_encoder = TextEncoder(
        bert=bert, trained_layers=text.trained_layers, train_embeddings=text.train_embeddings, hidden=text.hidden,
        heads=text.heads, qk_width=text.qk_width, score_scale=text.score_scale, positions=text.positions,
        dropout=text.dropout, pooling=text.pooling)
    return NRCCR(
        visual_encoder=visual_encoder, text_encoder=text_encoder, hidden=text.hidden, space=config.space.dim,
        dropout=config.space.dropout, discriminator=build_discriminator(config, dim=bert.config.hidden_size),
        use_cross=weights.kd_sim > 0 or weights.kd_feat > 0, use_back=weights.triplet_back > 0,
        architecture={'bert': _plain(bert.config), 'clip': clip_config, 'feature_dim': stored['feature_dim']})


def build_discriminator(config, dim):
    """The language discriminator on tokens of width `dim`."""
    kind, pooling = config.discriminator.kind, config.discriminator.pooling
    if kind == 'strong':
        return ConvDiscriminator(dim=dim, pooling=pooling, relu_skip=config.discriminator.relu_skip)
    return {'not-so-weak': MlpDiscriminator, 'weak': LinearDiscriminator}[kind](dim=dim, pooling=pooling)
