"""Values of a config that do not fit each other; a single value is checked by basic/option.py."""


def impossible(config):
    """Yield (key, what is wrong and what would be valid) of values that do not fit each other."""
    data, visual, weights = config.data, config.visual, config.loss.weights
    if not (weights.triplet_en or weights.triplet_tgt):
        yield 'loss.weights', 'nothing ties text to images: set triplet_en or triplet_tgt above 0'
    if not config.eval.weights:
        yield 'eval.weights', 'expected at least one weight, each in [0, 1]'
    # images have no block of their own
    for group in ('text', 'visual') if visual.kind == 'frames' else ('text',):
        heads = config[group].heads
        for key in ('hidden', 'qk_width'):
            if config[group][key] % heads:
                yield f'{group}.{key}', f'not divisible by {group}.heads={heads}'
    tasks = {'1', *data.train_prefix, *(key.split('/')[0] for key in data.suffix)}
    if str(data.task) not in tasks:
        yield 'data.task', f'valid values for {data.collection}: {", ".join(sorted(tasks))}'
    yield from _of_frozen_cache(config)
    yield from _of_visuals(config)


def _of_frozen_cache(config):
    """The same, of what `compute.frozen_cache` needs."""
    text = config.text
    if not config.compute.frozen_cache:
        return
    if text.train_all or text.train_embeddings or 0 in text.trained_layers:
        trained = next(k for k in ('train_all', 'train_embeddings', 'trained_layers') if text[k])
        yield 'compute.frozen_cache', f'text.{trained} leaves no frozen layer below a trained one'
    if config.compute.compile:
        yield 'compute.frozen_cache', 'compute.compile compiles all of BERT: valid then: false'
    poolings = {'text.pooling': text.pooling}
    if config.loss.weights.adversarial:
        poolings['discriminator.pooling'] = config.discriminator.pooling
    for key, pooling in poolings.items():
        if pooling == 'padded_mean':
            reason = 'reads what BERT makes of padding, which the cache does not have'
            yield 'compute.frozen_cache', f'{key}=padded_mean {reason}: try {key}=mean'


def _of_visuals(config):
    """The same, of what follows from `visual.kind`."""
    data, visual, cache = config.data, config.visual, config.compute.image_cache
    if visual.kind == 'frames':
        if not data.frames:
            yield 'data.frames', "visual.kind=frames needs the folder's template"
        if visual.max_frames > visual.positions:
            there = f'visual.positions={visual.positions}'
            yield 'visual.max_frames', f'there are only {there} learned positions'
        if data.images:
            images = f'data.images={data.images!r} makes {data.collection} an image collection'
            videos = 'valid values there: pooled, clip; for videos set data.images='
            yield 'visual.kind', f'but {images}; {videos}'
    video = f'{data.collection} may be a video collection (visual.kind=frames)'
    if visual.kind == 'pooled':
        for split in data.pooled:
            if not (data.pooled[split] and data.ids[split]):
                needs = f'visual.kind=pooled needs feature files and data.ids.{split}'
                yield f'data.pooled.{split}', f'{needs}; {video}'
    if visual.kind == 'clip':
        if not data.images:
            needs = 'visual.kind=clip needs a template such as images/{id}.jpg'
            yield 'data.images', f'{needs}; {video}'
        if '{id}' not in data.images:
            yield 'data.images', 'expected a template with {id} in it'
        if cache == 'embeddings' and visual.train_clip:
            changes = 'visual.train_clip changes the embeddings in every step'
            yield 'compute.image_cache', f'{changes}: valid values then: none, pixels'
    else:
        features = f'visual.kind={visual.kind} reads features'
        if visual.train_clip:
            no_clip = f'{features}, there is no CLIP to train'
            yield 'visual.train_clip', f'{no_clip}: valid value then: false'
        if cache != 'none':
            yield 'compute.image_cache', f'{features}, not images: valid value then: none'
