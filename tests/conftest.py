"""What the tests share: the path to the code, threads, small random models, configs and batches.

One thread, unless OMP_NUM_THREADS says otherwise.
"""

import os
import signal
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

from basic import runtime  # noqa: E402, F401  (lets transformers import beside a torchvision of another build)

import pytest  # noqa: E402
import torch  # noqa: E402

from basic.caption import Tokens  # noqa: E402
from basic.config import load_config  # noqa: E402
from basic.files import locked  # noqa: E402
from data_provider import Batch  # noqa: E402
from util.make_demo.bert import write_bert  # noqa: E402
from util.make_demo.clip import clip_tower  # noqa: E402
from util.make_demo.folders import make_once  # noqa: E402

from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModelWithProjection  # noqa: E402

if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    # Under nohup; the tests send this signal, and what ignores it would wait for ever.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS') or 1))

WORDS = (
    'a red blue green dog cat bird house tree car runs sleeps rot blau hund katze haus baum ein'
).split()
VOCABULARY = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.', *WORDS]
FEATURE_DIM, IMAGE_SIZE = 10, 16
TINY = [
    'text.trained_layers=[1,2]',
    'text.hidden=24',
    'text.heads=2',
    'text.qk_width=8',
    'text.positions=20',
    'visual.feature_dim=10',
    'visual.hidden=16',
    'visual.heads=2',
    'visual.qk_width=8',
    'visual.positions=12',
    'visual.max_frames=12',
    'space.dim=14',
]
NO_DROPOUT = ['text.bert_dropout=0', 'text.dropout=0', 'visual.dropout=0', 'space.dropout=0']


@pytest.fixture(scope='session')
def bert_folder(tmp_path_factory):
    """A random BERT of three layers, 32 wide, with its vocabulary, as transformers saves it."""
    folder = tmp_path_factory.mktemp('bert')
    torch.manual_seed(1)
    BertModel(
        BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=40,
        )
    ).save_pretrained(folder)
    (folder / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n', encoding='utf-8')
    return folder


@pytest.fixture(scope='session')
def demo_root(tmp_path_factory):
    """demo_root(folder) -> folder, made a ROOTPATH with the demo's encoders, which take long to
    make.

    All processes of a parallel run of the tests share them.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'demo encoders'
    shared.mkdir(exist_ok=True)
    with locked(shared / '.lock', wait=True):
        make_once(shared / 'bert', write_bert, print)
        make_once(shared / 'clip', clip_tower, print)

    def make(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ('bert', 'clip'):
            (folder / name).symlink_to(shared / name)
        return folder

    return make


@pytest.fixture(scope='session')
def clip_folder(tmp_path_factory):
    """A random image tower of CLIP, two layers, for images of 16 x 16, as transformers saves it."""
    folder = tmp_path_factory.mktemp('clip')
    torch.manual_seed(2)
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=IMAGE_SIZE,
            patch_size=8,
            projection_dim=12,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def make_config(bert_folder, clip_folder):
    """make_config(kind, *options) -> the collection's config with small sizes, for each kind of
    visual item."""

    def make(kind='frames', *options):
        path = REPOSITORY / 'configs' / ('vatex.yaml' if kind == 'frames' else 'multi30k.yaml')
        return load_config(
            path,
            [
                *TINY,
                f'text.bert={bert_folder}',
                f'visual.clip={clip_folder}',
                f'visual.kind={kind}',
                *options,
            ],
        )

    return make


def random_tokens(generator, lengths):
    """Random captions of these lengths as Tokens, ids (N, L) and mask (N, L); 0 is padding."""
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()
    ids = torch.randint(5, len(VOCABULARY), mask.shape, generator=generator)
    return Tokens(ids=ids * mask.long(), mask=mask)


@pytest.fixture
def make_batch():
    """make_batch(kind, seed) -> six random pairs."""

    def make(kind='frames', seed=0):
        generator = torch.Generator().manual_seed(seed)
        visual_mask = None
        if kind == 'frames':
            visual_mask = (torch.arange(7) < torch.tensor([7, 3, 5, 7, 1, 2])[:, None]).float()
            visual = torch.randn(6, 7, FEATURE_DIM, generator=generator) * visual_mask[..., None]
        elif kind == 'pooled':
            visual = torch.randn(6, FEATURE_DIM, generator=generator)
        else:
            visual = torch.randn(6, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
        return Batch(
            visual=visual,
            visual_mask=visual_mask,
            en=random_tokens(generator, [9, 4, 6, 3, 9, 5]),
            tgt=random_tokens(generator, [5, 8, 11, 4, 6, 7]),
            back=random_tokens(generator, [3, 8, 6, 7, 4, 5]),
            index=torch.arange(6),
            total=6,
        )

    return make
