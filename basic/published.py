"""The results that the authors report, in per cent: single runs on the test splits."""

QUALITIES = (
    *(f'{way}/{name}' for way in ('t2v', 'v2t') for name in ('R@1', 'R@5', 'R@10', 'MedR', 'mAP')),
    'SumR',
)

# (collection, language, task, visual.kind): (t2v R@1, R@5, R@10, MedR, mAP; v2t the same; SumR), or
# SumR alone.
FIGURES = {
    ('vatex', 'zh', 1, 'frames'): (30.8, 64.4, 74.6, 3, 45.78, 43.1, 72.3, 81.4, 2, 32.57, 366.5),
    ('msrvttcn', 'zh', 1, 'frames'): (
        28.9,
        56.3,
        67.3,
        4,
        41.28,
        28.9,
        57.6,
        69.0,
        4,
        42.02,
        308.0,
    ),
    ('multi30k', 'de', 1, 'clip'): (53.8, 81.8, 88.3, 1, 66.60, 53.8, 82.7, 90.3, 1, 66.66, 450.7),
    ('multi30k', 'fr', 1, 'clip'): (54.7, 81.7, 89.2, 1, 67.05, 54.9, 82.7, 89.7, 1, 67.29, 452.9),
    ('multi30k', 'cs', 1, 'clip'): (52.6, 79.4, 87.9, 1, 65.26, 52.3, 78.7, 87.8, 1, 64.68, 438.7),
    ('multi30k', 'cs', 1, 'pooled'): (
        29.5,
        56.0,
        68.1,
        4,
        41.89,
        27.5,
        55.1,
        67.4,
        4,
        40.59,
        303.6,
    ),
    ('multi30k', 'de', 2, 'clip'): (480.9,),
    ('multi30k', 'fr', 2, 'clip'): (482.1,),
    ('multi30k', 'cs', 2, 'clip'): (467.1,),
    ('mscoco', 'zh', 1, 'clip'): (512.4,),
    ('mscoco', 'ja', 1, 'clip'): (507.0,),
}
FEATURES = {'vatex': 'i3d_kinetics', 'msrvttcn': 'resnext101-resnet152', 'multi30k': 'resnet_152'}


def released_figures(config):
    """The reported results for a config's collection, language, task and visual features.

    Args:
        config: basic.config.Config.
    Returns:
        dict name (of `QUALITIES`) -> number; empty if the authors report none for such data and
        pretrained encoders.
    """
    visual, data = config.visual, config.data
    same = config.text.pretrained and (
        visual.clip_pretrained
        if visual.kind == 'clip'
        else visual.feature == FEATURES.get(data.collection)
    )
    figures = FIGURES.get((data.collection, data.lang, data.task, visual.kind), ()) if same else ()
    return dict(zip(QUALITIES[-len(figures) :], figures)) if figures else {}
