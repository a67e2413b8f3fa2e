"""NRCCR's model: visual encoders, text encoder with its cross branch, projections, teacher.

N pairs, L tokens, F frames, S side of an image, D width of a feature or of BERT's tokens, P width
of CLIP's embeddings, W and H widths out of the visual and the text encoder, E common space. With
several processes a batch here is a process's share, n of N pairs. Masks are (N, L) or (N, F), 1 at
real positions. Modules take explicit arguments; only the `build_*` functions see the config.
"""

import math
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from basic.config import reads
from basic.discriminator import ConvDiscriminator, LinearDiscriminator, MlpDiscriminator
from basic.distributed import gather, shared
from basic.errors import DataError
from basic.images import Preprocessing
from basic.layers import AttentionBlock, GlobalBatchNorm1d, InputProjection, LearnedPositions, pool
from basic.pretrained.encoders import bert_layers, bert_mask, bert_positions, build_bert
from basic.pretrained.encoders import checkpoint_layers, lower_layers, plain, upper_layers
from basic.pretrained.towers import build_clip, image_embeddings, read_preprocessing
from basic.pretrained.towers import tower_width, vision_config
from basic.runtime import autocast

GROUP = 64  # captions in a pass through BERT where they are sorted by length
FIRST_TEMPERATURE, LARGEST_SCALE = 0.07, 100  # of InfoNCE, as in CLIP: the scale is 1 / temperature


class Encoded(NamedTuple):
    """What the model makes of a training batch.

    Out of the encoders (`NRCCR.encode_branches`) the embeddings are (n, W) for visual and (n, H)
    for each branch; in the common space (`NRCCR.project`) they are (N, E) each, L2-normalised, of
    all processes together. `tgt`, `cross` and `back` are None where no loss term needs them,
    and `cross` where a momentum teacher computes it (train_step adds it).
    """

    visual: torch.Tensor
    en: torch.Tensor
    tgt: torch.Tensor | None
    cross: torch.Tensor | None
    back: torch.Tensor | None
    tokens_en: torch.Tensor  # (n, L, D), BERT's, for the discriminator
    tokens_tgt: torch.Tensor | None  # (n, L, D)
    log_scale: torch.Tensor | None = None  # InfoNCE's learned log(1 / temperature)

    def each(self, function):
        """The tuple with function(tensor) for each of its tensors."""
        return Encoded(*(None if part is None else function(part) for part in self))

    @staticmethod
    def cat(parts):
        """The rows of several parts of a batch, one part after the other."""
        return Encoded(*(None if rows[0] is None else torch.cat(rows) for rows in zip(*parts)))


class VideoEncoder(nn.Module):
    """Frame features -> one vector per video, by an attention block over its frames."""

    def __init__(
        self,
        *,
        dim,
        hidden,
        heads,
        qk_width,
        score_scale,
        positions,
        dropout,
        pooling,
        attention='auto',
    ):
        super().__init__()
        self.input = InputProjection(dim=dim, hidden=hidden, dropout=dropout)
        self.positions = LearnedPositions(positions=positions, hidden=hidden, dropout=dropout)
        self.block = AttentionBlock(
            hidden=hidden,
            heads=heads,
            qk_width=qk_width,
            score_scale=score_scale,
            dropout=dropout,
            attention=attention,
        )
        self.pooling = pooling
        self.width = hidden

    def forward(self, frames, mask):
        """frames (N, F, D), mask (N, F) -> (N, W)."""
        x = self.positions(self.input(frames))  # (N, F, W)
        x = self.block(x, mask)  # (N, F, W)
        return pool(x, mask, self.pooling)  # (N, W)


class FeatureEncoder(nn.Module):
    """One pooled feature an image -> ReLU(linear): (N, D) -> (N, D)."""

    def __init__(self, *, dim):
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.width = dim

    def forward(self, features, mask=None):
        return F.relu(self.linear(features))


class ClipEncoder(nn.Module):
    """Images through CLIP's image tower, or a like one, then a linear layer.

    Reads pixels (N, 3, S, S), or the tower's embeddings (N, P), and gives (N, W).

    Args:
        clip: the tower, from `basic.pretrained.towers.build_clip`.
        hidden: width after the linear layer.
        train_clip: let gradients reach the tower (as released: no).
        preprocessing: what it asks of its images, a basic.images.Preprocessing.
    """

    def __init__(self, *, clip, hidden, train_clip, preprocessing):
        super().__init__()
        self.clip = clip.requires_grad_(train_clip)
        self.train_clip = train_clip
        self.linear = nn.Linear(tower_width(clip.config), hidden)
        self.width, self.preprocessing = hidden, preprocessing
        for name in ('mean', 'std'):
            values = torch.tensor(getattr(preprocessing, name))
            self.register_buffer(name, values[:, None, None], persistent=False)

    def embed(self, pixels):
        """Pixels (N, 3, S, S), bytes or already normalised -> the tower's embeddings (N, P)."""
        if pixels.dtype == torch.uint8:
            pixels = pixels.float().div_(255).sub_(self.mean).div_(self.std)
        with torch.set_grad_enabled(self.train_clip and torch.is_grad_enabled()):
            return image_embeddings(self.clip, pixel_values=pixels)

    def forward(self, visual, mask=None):
        embeddings = visual if visual.dim() == 2 else self.embed(visual)  # (N, P)
        return self.linear(embeddings)  # (N, W)


class TextEncoder(nn.Module):
    """BERT, then linear, positions and one attention block that every branch shares.

    Args:
        bert: a BERT-like transformers model; `trained_layers` of it are trained (counted from 0),
            its embeddings if `train_embeddings`, the rest is frozen. With `train_all` all of it is
            trained.
        padding_matters: whether what BERT puts out at padded positions is used, by `pooling` or by
            a discriminator. Where it is not, captions are sorted by length for BERT, and little is
            computed at padding.
        the rest: as `basic.config.Text` and `basic.layers.AttentionBlock` document.
    Raises:
        ValueError: a layer number that the model does not have.
    """

    def __init__(
        self,
        *,
        bert,
        trained_layers,
        train_embeddings,
        hidden,
        heads,
        qk_width,
        score_scale,
        positions,
        dropout,
        pooling,
        attention='auto',
        padding_matters=True,
        train_all=False,
    ):
        super().__init__()
        self.bert = bert.requires_grad_(train_all)
        layers = bert_layers(bert)
        for number in [] if train_all else trained_layers:
            if number >= len(layers):
                raise ValueError(
                    f"key 'text.trained_layers' names layer {number}, but this BERT has"
                    f' {len(layers)} (0 to {len(layers) - 1})'
                )
            layers[number].requires_grad_(True)
        if train_embeddings:
            whole = getattr(bert, 'embeddings', None)  # with positions, or else the tokens alone
            (whole or bert.get_input_embeddings()).requires_grad_(True)
        self.input = InputProjection(dim=bert.config.hidden_size, hidden=hidden, dropout=dropout)
        self.positions = LearnedPositions(positions=positions, hidden=hidden, dropout=dropout)
        self.block = AttentionBlock(
            hidden=hidden,
            heads=heads,
            qk_width=qk_width,
            score_scale=score_scale,
            dropout=dropout,
            attention=attention,
        )
        self.pooling, self.padding_matters = pooling, padding_matters
        self.max_tokens = bert_positions(bert)
        all_frozen = 0 if train_all or train_embeddings else len(layers)
        self.frozen_layers = min([*trained_layers, all_frozen])  # below the first trained one

    @torch.no_grad()
    def lower(self, captions):
        """What the frozen lower layers make of captions (n, L), without dropout -> (n, L, D).

        It is what `Tokens.lower` keeps: the same for as long as the model is trained.

        Raises:
            ValueError: a kind of model that cannot be divided.
        """
        was_training = self.bert.training
        bert = lower_layers(self.bert.eval(), self.frozen_layers)
        output = self._by_length(bert, captions.mask.long(), input_ids=captions.ids)
        self.bert.train(was_training)
        return output

    def tokens(self, branches, together=None):
        """BERT's token outputs of several branches, in one pass or in one per branch.

        Padding is masked as a key in BERT, so a branch's output at its own positions does not
        depend on how far the pass is padded: each branch is cut back to its own length. A GPU gains
        from fewer, larger products; a CPU is bound by arithmetic, and would pay for padding every
        branch to the longest one.

        Args:
            branches: list of basic.caption.Tokens, (n, L_i) each.
            together: in one pass; None: unless the branches are on a CPU.
        Returns:
            list of (n, L_i, D). Where padding does not matter it holds zeros there.
        Raises:
            ValueError: a branch longer than BERT's positions.
        """
        longest = max(captions.ids.shape[1] for captions in branches)
        if longest > self.max_tokens:
            raise ValueError(
                f'a caption of {longest} tokens, but this BERT has only {self.max_tokens}'
                f' positions: set text.positions={self.max_tokens} or less, then longer captions'
                ' are cut'
            )
        if together is None:
            together = len(branches) > 1 and branches[0].ids.device.type != 'cpu'
        if self.padding_matters and not together:
            return [self._pass(self.bert, b.mask.long(), input_ids=b.ids) for b in branches]

        def whole(name, *beside):
            padded = [getattr(captions, name) for captions in branches]
            padded = [F.pad(x, (*beside, 0, longest - x.shape[1])) for x in padded]
            return torch.cat(padded)  # (branches * n, longest[, D])

        mask = whole('mask').long()
        if self.padding_matters:
            output = self._pass(self.bert, mask, input_ids=whole('ids'))
        elif branches[0].lower is None:
            output = self._by_length(self.bert, mask, input_ids=whole('ids'))
        else:
            upper = upper_layers(self.bert, self.frozen_layers)
            output = self._by_length(upper, mask, inputs_embeds=whole('lower', 0, 0))
        parts = output.split([len(captions.ids) for captions in branches])  # (n, longest, D) each
        return [part[:, : captions.ids.shape[1]] for part, captions in zip(parts, branches)]

    def _pass(self, bert, mask, **inputs):
        """A pass of BERT, or of a part of it: mask (K, L) int64 -> (K, L, D)."""
        return bert(attention_mask=bert_mask(bert, mask), **inputs).last_hidden_state

    def _by_length(self, bert, mask, **inputs):
        """The same, captions of like length together, with zeros at padding."""
        lengths = mask.sum(dim=1)
        order = lengths.argsort(stable=True)
        rising = lengths[order].tolist()  # waits for the GPU, once per pass
        output = None
        for start in range(0, len(mask), GROUP):
            rows = order[start : start + GROUP]
            width = max(rising[min(start + GROUP, len(mask)) - 1], 1)  # of the group's longest
            read = {name: whole[rows, :width] for name, whole in inputs.items()}
            part = self._pass(bert, mask[rows, :width], **read) * mask[rows, :width, None]
            if output is None:
                output = part.new_zeros(*mask.shape, part.shape[-1])
            output[rows, :width] = part
        return output

    def inputs(self, tokens):
        """BERT's tokens (N, L, D) -> the attention block's inputs (N, L, H)."""
        return self.positions(self.input(tokens))

    def attend(self, x, mask):
        """The block's inputs (N, L, H) -> one vector a caption (N, H)."""
        return pool(self.block(x, mask), mask, self.pooling)

    def attend_across(self, en, en_mask, tgt, tgt_mask):
        """The cross branch: English queries over the translation, pooled with the translation.

        Args:
            en (N, L1, H), tgt (N, L2, H): the two branches' inputs to the block, with their masks.
        Returns:
            (N, H).
        """
        crossed = self.block(en, en_mask, context=tgt, context_mask=tgt_mask)  # (N, L1, H)
        both = torch.cat([crossed, tgt], dim=1)  # (N, L1 + L2, H)
        mask = torch.cat([en_mask, tgt_mask], dim=1)  # (N, L1 + L2)
        return pool(both, mask, self.pooling)

    def cross(self, en, tgt):
        """The cross branch from its captions, two basic.caption.Tokens of n rows -> (n, H)."""
        tokens_en, tokens_tgt = self.tokens([en, tgt])
        return self.attend_across(
            self.inputs(tokens_en), en.mask, self.inputs(tokens_tgt), tgt.mask
        )

    def forward(self, captions):
        """basic.caption.Tokens (N, L) -> (N, H)."""
        return self.attend(self.inputs(*self.tokens([captions])), captions.mask)


class Projection(nn.Module):
    """To the common space: linear, batch norm, dropout, L2 normalisation; (N, D) -> (N, E)."""

    def __init__(self, *, dim, space, dropout):
        super().__init__()
        self.linear = nn.Linear(dim, space)
        self.norm = GlobalBatchNorm1d(space)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        return F.normalize(self.dropout(self.norm(self.linear(x))), dim=-1)


class NRCCR(nn.Module):
    """The whole model: visual and text encoder, a projection for each, discriminator.

    Args:
        visual_encoder: (visual, mask) -> (N, W), with its `width` W.
        text_encoder: a TextEncoder of width H; hidden: H.
        space, dropout: width E of the common space and the projections' dropout.
        discriminator: (tokens, mask) -> logits (N, 2).
        use_tgt, use_cross, use_back: whether the training forward computes these branches.
        learn_scale: have the parameter `log_scale` of InfoNCE.
        architecture: plain dict that rebuilds BERT and CLIP without a download, kept for
            checkpoints.
    """

    def __init__(
        self,
        *,
        visual_encoder,
        text_encoder,
        hidden,
        space,
        dropout,
        discriminator,
        use_cross,
        use_back,
        architecture,
        use_tgt=True,
        learn_scale=False,
    ):
        super().__init__()
        self.visual_encoder = visual_encoder
        self.text_encoder = text_encoder
        self.visual_projection = Projection(dim=visual_encoder.width, space=space, dropout=dropout)
        self.text_projection = Projection(dim=hidden, space=space, dropout=dropout)
        self.discriminator = discriminator
        self.use_tgt, self.use_cross, self.use_back = use_tgt, use_cross, use_back
        self.log_scale = (
            nn.Parameter(torch.tensor(-math.log(FIRST_TEMPERATURE))) if learn_scale else None
        )
        self.architecture = architecture

    @property
    def preprocessing(self):
        """The basic.images.Preprocessing of images; None if the visual encoder reads features."""
        return getattr(self.visual_encoder, 'preprocessing', None)

    def parameter_groups(self, *, lr, bert_lr):
        """The main parameters as an optimizer takes them: BERT's have a learning rate of their own.

        Where it is 0 or the same, there is one group, else that of BERT is the second.
        """
        main = self.main_parameters()
        if bert_lr in (0, lr):
            return [{'params': main, 'lr': lr}]
        bert = {id(p) for p in self.text_encoder.bert.parameters()}
        return [
            {'params': [p for p in main if id(p) not in bert], 'lr': lr},
            {'params': [p for p in main if id(p) in bert], 'lr': bert_lr},
        ]

    def main_parameters(self):
        """The trained parameters of encoders and projections, without the discriminator's."""
        return [
            p
            for name, p in self.named_parameters()
            if p.requires_grad and not name.startswith('discriminator.')
        ]

    @torch.no_grad()
    def keep_in_bounds(self):
        """After an optimizer's step: clamp InfoNCE's scale to 100, from where it can come down."""
        if self.log_scale is not None:
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))

    def encode_visual(self, visual, mask=None):
        """frames (N, F, D) with mask (N, F), features (N, D), or pixels (N, 3, S, S) -> (N, E)."""
        return in_float32(self.visual_projection, self.visual_encoder(visual, mask))

    def encode_text(self, captions):
        """basic.caption.Tokens (N, L) -> (N, E); a branch at a time, both languages alike."""
        return in_float32(self.text_projection, self.text_encoder(captions))

    def forward(self, batch, micro_batch=0):
        """A training batch (`data_provider.Batch`) -> Encoded.

        Args:
            batch: this process's share of the global batch.
            micro_batch: pairs encoded at once, 0 for all. Of each such part only what comes out of
                the encoders is kept, and its graph is built again, with the same dropout, when the
                backward pass gets there: gradients of a large batch with all its negatives, in the
                memory of a small one.
        """
        if not len(batch.index):
            # A short batch has no pair for this process, which must still take part in what all do.
            encoded = self.encode_branches(batch.stand_in()).each(lambda part: part[:0])
        elif micro_batch and micro_batch < len(batch.index):
            parts = [self._encode_again_later(part) for part in batch.split(micro_batch)]
            encoded = Encoded.cat(parts)
        else:
            encoded = self.encode_branches(batch)
        return self.project(encoded, total=batch.total)

    def _encode_again_later(self, part):
        """`encode_branches`, whose graph is dropped, and built again in the backward pass."""
        # `checkpoint` keeps the random numbers of the devices of tensors among its arguments, and
        # finds none inside a Batch: hence `part.index`.
        return checkpoint(
            lambda part, _: self.encode_branches(part), part, part.index, use_reentrant=False
        )

    def encode_branches(self, batch):
        """Everything before the projections -> Encoded, (n, W) and (n, H).

        It is a function of each pair alone, but for the padding of its batch.
        """
        text = self.text_encoder
        used = {'en': True, 'tgt': self.use_tgt, 'back': self.use_back}
        captions = {branch: getattr(batch, branch) for branch, use in used.items() if use}
        tokens = dict(zip(captions, text.tokens([*captions.values()])))  # (n, L, D) each
        inputs = {branch: text.inputs(part) for branch, part in tokens.items()}  # (n, L, H) each

        def attend(branch):
            return text.attend(inputs[branch], captions[branch].mask)  # (n, H)

        # Dropout draws its random numbers in this order.
        visual = self.visual_encoder(batch.visual, batch.visual_mask)  # (n, W)
        en = attend('en')
        tgt = attend('tgt') if self.use_tgt else None
        cross = None
        if self.use_cross:
            cross = text.attend_across(inputs['en'], batch.en.mask, inputs['tgt'], batch.tgt.mask)
        back = attend('back') if self.use_back else None
        return Encoded(visual, en, tgt, cross, back, tokens['en'], tokens.get('tgt'))

    def project(self, encoded, total):
        """This process's share of `total` pairs, (n, W) and (n, H) -> all of them, (N, E).

        The text projection runs once per branch, in the order en, tgt, cross, back: each call moves
        its batch norm.
        """

        def to_space(projection, x):
            return None if x is None else gather(in_float32(projection, x), total)

        return encoded._replace(
            visual=to_space(self.visual_projection, encoded.visual),
            en=to_space(self.text_projection, encoded.en),
            tgt=to_space(self.text_projection, encoded.tgt),
            cross=to_space(self.text_projection, encoded.cross),
            back=to_space(self.text_projection, encoded.back),
            log_scale=None if self.log_scale is None else shared(self.log_scale),
        )


class MomentumTeacher(nn.Module):
    """A slow copy of the text encoder and its projection, which computes the cross branch.

    Its trained weights are exponential moving averages of the model's, theta <- m * theta + (1 - m)
    * theta_model after each optimizer step (Tarvainen and Valpola 2017, arXiv 1703.01780); what is
    frozen in the model is shared with it. It runs without gradient and without dropout. Its batch
    norm takes the statistics of the batch, as the model's own does for this branch: those that the
    model has stored are of other branches. Evaluation has no use for it.

    Args:
        model: NRCCR, of which it starts as a copy.
        momentum: m.
    """

    def __init__(self, model, momentum):
        super().__init__()
        source = nn.ModuleDict({'encoder': model.text_encoder, 'projection': model.text_projection})
        copy = deepcopy(source, {id(p): p for p in source.parameters() if not p.requires_grad})
        self.encoder, self.projection = copy['encoder'], copy['projection']
        pairs = list(zip(copy.named_parameters(), source.parameters(), strict=True))
        self._moving = {
            name: ours.requires_grad_(False) for (name, ours), theirs in pairs if ours is not theirs
        }
        self._followed = [theirs for (_, ours), theirs in pairs if ours is not theirs]
        self._average = get_ema_multi_avg_fn(momentum)
        self.train()

    def train(self, mode=True):
        """Always the mode that the class describes."""
        super().train(False)
        self.projection.norm.train()
        return self

    @torch.no_grad()
    def forward(self, batch, micro_batch=0):
        """The cross branch (N, E) of a training batch, of all processes; arguments as of NRCCR."""
        own = len(batch.index)
        parts = batch.split(micro_batch or own) if own else [batch.stand_in()]
        cross = torch.cat([self.encoder.cross(part.en, part.tgt) for part in parts])[:own]  # (n, H)
        return gather(in_float32(self.projection, cross), batch.total)  # (N, E)

    def follow(self):
        """Move towards the model."""
        self._average(list(self._moving.values()), self._followed, None)

    def weights(self):
        """What moves, for a checkpoint: dict of name -> tensor."""
        return {name: parameter.detach() for name, parameter in self._moving.items()}

    @torch.no_grad()
    def restore(self, weights):
        """Put back what `weights` gave."""
        for name, parameter in self._moving.items():
            parameter.copy_(weights[name])


def in_float32(projection, x):
    """projection(x) in float32 under autocast too: losses and scores compare what comes out."""
    with autocast(x.device, 'fp32'):
        return projection(x.float())


def build_model(config, feature_dim=0, architecture=None):
    """The model of a `basic.config.Config`.

    Args:
        config: the checked config.
        feature_dim: width of the data's features, for visual.kind frames and pooled.
        architecture: `NRCCR.architecture` of a checkpoint: BERT and CLIP are rebuilt from it with
            random weights, to be overwritten by the checkpoint's, and nothing is downloaded. None:
            read them by the config's names.
    Raises:
        ValueError: weights that cannot be found, a layer that does not exist; names the key.
    """
    text, visual, loss, compute = config.text, config.visual, config.loss, config.compute
    needed = reads(loss.weights)
    stored = architecture or {'bert': None, 'clip': None, 'feature_dim': feature_dim}
    if (visual.kind == 'clip') != bool(stored['clip']) and architecture:
        raise ValueError(
            f"key 'visual.kind' is '{visual.kind}', but the model reads "
            + ('images' if stored['clip'] else f'features {stored["feature_dim"]} wide')
        )

    bert = build_bert(
        name=text.bert,
        pretrained=text.pretrained,
        dropout=text.bert_dropout,
        architecture=stored['bert'],
        attention=compute.attention,
    )
    visual_encoder = build_visual_encoder(config, stored['feature_dim'], architecture)
    text_encoder = build_text_encoder(config, bert)
    if compute.checkpointing:
        layers = bert_layers(bert)
        trained = layers if text.train_all else [layers[number] for number in text.trained_layers]
        checkpoint_layers(trained)
    if compute.compile:
        bert.compile(dynamic=True)
        visual_encoder.compile(dynamic=True)
    images = visual.kind == 'clip'
    return NRCCR(
        visual_encoder=visual_encoder,
        text_encoder=text_encoder,
        hidden=text.hidden,
        space=config.space.dim,
        dropout=config.space.dropout,
        discriminator=build_discriminator(config, dim=bert.config.hidden_size),
        use_tgt='tgt' in needed,
        use_cross='cross' in needed and loss.teacher == 'self',
        use_back='back' in needed,
        learn_scale=loss.contrastive == 'infonce',
        architecture={
            'bert': plain(bert.config),
            'clip': plain(visual_encoder.clip.config) if images else None,
            'preprocessing': visual_encoder.preprocessing.plain() if images else None,
            'feature_dim': stored['feature_dim'],
        },
    )


def build_visual_encoder(config, feature_dim, architecture=None):
    """The visual encoder of a config, for features of width `feature_dim` or for images."""
    visual, stored = config.visual, architecture or {}
    if visual.kind == 'clip':
        clip = build_clip(
            name=visual.clip, pretrained=visual.clip_pretrained, architecture=stored.get('clip')
        )
        if stored.get('preprocessing'):
            preprocessing = Preprocessing(**stored['preprocessing'])
        elif stored:  # a released checkpoint, or an older one of ours
            preprocessing = Preprocessing(image_size=vision_config(clip.config).image_size)
        else:
            preprocessing = read_preprocessing(visual.clip, clip.config)
        return ClipEncoder(
            clip=clip,
            hidden=visual.hidden,
            train_clip=visual.train_clip,
            preprocessing=preprocessing,
        )
    assert feature_dim > 0, 'the caller gives the width of the features'
    if visual.kind == 'pooled':
        return FeatureEncoder(dim=feature_dim)
    return VideoEncoder(
        dim=feature_dim,
        hidden=visual.hidden,
        heads=visual.heads,
        qk_width=visual.qk_width,
        score_scale=visual.score_scale,
        positions=visual.positions,
        dropout=visual.dropout,
        pooling=visual.pooling,
        attention=config.compute.attention,
    )


def build_text_encoder(config, bert):
    """The text encoder of a config around a BERT."""
    text, poolings = config.text, [config.text.pooling]
    if 'tokens' in reads(config.loss.weights):
        poolings.append(config.discriminator.pooling)
    return TextEncoder(
        bert=bert,
        trained_layers=text.trained_layers,
        train_embeddings=text.train_embeddings,
        train_all=text.train_all,
        hidden=text.hidden,
        heads=text.heads,
        qk_width=text.qk_width,
        score_scale=text.score_scale,
        positions=text.positions,
        dropout=text.dropout,
        pooling=text.pooling,
        attention=config.compute.attention,
        padding_matters='padded_mean' in poolings,
    )


def build_discriminator(config, dim):
    """The language discriminator on tokens of width `dim`."""
    kind, pooling = config.discriminator.kind, config.discriminator.pooling
    if kind == 'strong':
        return ConvDiscriminator(dim=dim, pooling=pooling, relu_skip=config.discriminator.relu_skip)
    discriminator = {'not-so-weak': MlpDiscriminator, 'weak': LinearDiscriminator}[kind]
    return discriminator(dim=dim, pooling=pooling)


def build_teacher(config, model):
    """The momentum teacher of a model, or None where no term is taught by one."""
    if config.loss.teacher != 'momentum' or 'cross' not in reads(config.loss.weights):
        return None
    teacher = MomentumTeacher(model, config.loss.teacher_momentum)
    if config.compute.compile:
        teacher.encoder.bert.compile(dynamic=True)
    return teacher


def refuse_misfit(config, checkpoint):
    """Raise ValueError unless a checkpoint's tensors fit the model that its config describes.

    The model is made without memory for its weights, so that a stranger's file cannot ask for a
    huge one.

    Args:
        config: with the options of the command line.
        checkpoint: basic.checkpoint.Checkpoint.
    """
    try:
        with torch.device('meta'):
            expected = build_model(config, architecture=checkpoint.architecture).state_dict()
    except ValueError:
        raise
    except Exception as error:  # transformers raises errors of many kinds for a config that is none
        raise ValueError(
            f'{checkpoint.path}: its architecture describes no model ({type(error).__name__}: '
            f'{(str(error).splitlines() or [""])[0][:200]})'
        ) from None
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    found = {name: tuple(value.shape) for name, value in checkpoint.model.items()}
    different = [
        f'{name}: expected {shapes.get(name, "none")}, found {found.get(name, "none")}'
        for name in {**shapes, **found}
        if shapes.get(name) != found.get(name)
    ]
    if different:
        raise ValueError(
            f'{checkpoint.path} does not fit the model that its config describes; does an option on'
            f' the command line change the model? {len(different)} tensors differ:'
            f' {"; ".join(different[:3])}'
        )


def load_weights(model, checkpoint):
    """Put a checkpoint's weights into a model; ValueError where an option has changed its shape."""
    try:
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:
        details = ' '.join(str(error).split())[:400]
        raise ValueError(
            f'{checkpoint.path} does not fit the model that its config describes; does an option on'
            f' the command line change the model? {details}'
        ) from None


def check_text(model, tokenizer, loaders=()):
    """Raise DataError unless the model's BERT has every token and enough positions.

    Args:
        model: model.NRCCR.
        tokenizer: that of the captions.
        loaders: data_provider's TrainLoader and EvalSets, for their longest captions.
    """
    encoder = model.text_encoder
    known = encoder.bert.get_input_embeddings().num_embeddings
    longest = max((loader.longest for loader in loaders), default=0)
    if len(tokenizer) > known:
        raise DataError(
            f"the tokenizer has {len(tokenizer):,} tokens, but the model's BERT only {known:,}:"
            ' give the one that belongs to it (text.bert; evaluation.py: --tokenizer)'
        )
    if longest > encoder.max_tokens:
        raise DataError(
            f'a caption has {longest} tokens, but this BERT has only {encoder.max_tokens}'
            f' positions: set text.positions={encoder.max_tokens} or less, then longer captions are'
            ' cut'
        )
