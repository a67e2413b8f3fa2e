"""Evaluation: encoding, fusing, the report and its files, the command line on a checkpoint."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

import evaluation
from basic.caption import Tokens
from basic.checkpoint import BEST, save_checkpoint
from basic.config import config_to_dict, load_config
from basic.pretrained.tokenizer import load_tokenizer, save_tokenizer
from basic.report import table, write_report
from evaluation import Embeddings, choose_weight, encode, evaluate, main, root_of, with_images
from model import build_model
from util import check_data
from util.verify_parity import write_released_checkpoint

REPOSITORY = Path(evaluation.__file__).parent
GOLDEN = REPOSITORY / 'tests/data/golden'
MULTI30K = REPOSITORY / 'configs/multi30k.yaml'


class FakeModel(torch.nn.Module):
    """Visual: the row itself; text: the mean of the real token ids, twice. Records the mode that it
    was called in."""

    def __init__(self):
        super().__init__()
        self.modes = set()

    def encode_visual(self, visual, mask):
        self.modes.add(self.training)
        return visual if mask is None else visual * mask

    def encode_text(self, captions):
        mean = (captions.ids * captions.mask).sum(1) / captions.mask.sum(1)
        return torch.stack([mean, mean], dim=1)


def fake_set():
    def tokens(*rows):
        return Tokens(torch.tensor(rows), (torch.tensor(rows) > 0).float())

    return SimpleNamespace(
        split='test',
        lang='de',
        order={},
        branches=('en', 'tgt'),
        left_out=None,
        visual_of=np.array([0, 1, 1]),
        caption_ids=['a#0', 'b#0', 'b#1'],
        visual_ids=['a', 'b'],
        visuals=[(torch.tensor([[1.0, 0]]), None), (torch.tensor([[0.0, 1]]), torch.ones(1, 2))],
        captions=[(tokens([2, 4], [6, 0]), tokens([1], [3])), (tokens([8]), tokens([5]))],
    )


def test_encode_keeps_order_and_mode():
    model = FakeModel().train()
    embeddings = encode(model, fake_set(), torch.device('cpu'))
    assert embeddings.visual.tolist() == [[1, 0], [0, 1]]
    assert embeddings.en[:, 0].tolist() == [3, 6, 8] and embeddings.tgt[:, 0].tolist() == [1, 3, 5]
    assert model.modes == {False} and model.training


def test_evaluate_adds_the_validation_weight():
    config = load_config(
        overrides=['data.collection=x', 'eval.weights=[1.0,0.0]', 'train.val_weight=0.3']
    )
    generator = torch.Generator().manual_seed(0)
    embeddings = Embeddings(*(torch.randn(n, 4, generator=generator) for n in (2, 3, 3)))
    report = evaluate(embeddings, fake_set(), config)
    assert [row['weight'] for row in report['rows']] == [1.0, 0.3, 0.0]
    assert (report['captions'], report['visuals'], report['ties']) == (3, 2, 'pessimistic')
    assert [
        row['weight'] for row in evaluate(embeddings, fake_set(), config, weights=[0.3])['rows']
    ] == [0.3]


class Scored:
    """In place of Scoring: SumR of each weight, as a table says."""

    table, low, high = {}, torch.tensor([-0.5, 0.25]), torch.tensor([0.5, 0.75])

    def __init__(self, *_, **__):
        self.weights = _[-1]

    def metrics(self):
        return [{'t2v': {}, 'v2t': {}, 'SumR': self.table[weight]} for weight in self.weights]


@pytest.mark.parametrize(
    'sums, options, chosen',
    [
        ({1.0: 1, 0.5: 9, 0.2: 3, 0.0: 2}, ['eval.weights=[1.0,0.5,0.0]'], 0.5),
        # as good: the nearest to 0.2
        ({1.0: 9, 0.5: 9, 0.2: 3, 0.0: 9}, ['eval.weights=[1.0,0.5,0.0]'], 0.0),
        ({0.3: 9, 0.1: 9, 0.2: 3}, ['eval.weights=[0.3,0.1]'], 0.1),  # as near: less translation
        ({0.3: 9, 0.2: 9.0000000001}, ['eval.weights=[0.3]'], 0.2),  # a last bit is no difference
        ({0.9: 9, 0.2: 3}, ['eval.weight_grid=[0.9]'], 0.9),  # instead of the reported ones
    ],
)
def test_the_weight_chosen_on_validation(monkeypatch, sums, options, chosen):
    monkeypatch.setattr(evaluation, 'scored', Scored)
    monkeypatch.setattr(Scored, 'table', sums)
    choice = choose_weight(
        [Embeddings(*(torch.zeros(1, 4),) * 3)],
        [fake_set()],
        load_config(overrides=['data.collection=x', *options]),
    )
    assert choice['chosen_weight'] == chosen
    assert {row['weight']: row['SumR'] for row in choice['chosen_from']} == sums
    ranges = {'en': {'low': -0.5, 'high': 0.5}, 'tgt': {'low': 0.25, 'high': 0.75}}
    assert choice['val_ranges'] == {'de': ranges}


def make_report(folder, split='test'):
    config = load_config(overrides=['data.collection=x', 'data.lang=fr'])
    embeddings = Embeddings(*(torch.randn(n, 4) for n in (2, 3, 3)))
    return {
        'checkpoint': str(folder / BEST),
        'epoch': 4,
        'config': 'x',
        'collection': 'x',
        'lang': 'fr',
        **evaluate(embeddings, fake_set(), config, with_ranks=True),
        'split': split,
    }


def test_table_is_aligned_and_marks_the_rows(tmp_path):
    report = make_report(tmp_path)
    lines = table(report).splitlines()
    assert lines[0] == 'x (fr), test: 3 captions, 2 visual items' and 'epoch 4' in lines[1]
    for first, head in ((3, 'text to visual'), (11, 'visual to text')):
        header, rows = lines[first + 1], lines[first + 2 : first + 7]
        assert lines[first].startswith(head) and header.split()[1:7] == [
            'R@1',
            'R@5',
            'R@10',
            'MedR',
            'MeanR',
            'mAP',
        ]
        assert [row.split()[0] for row in rows] == ['1', '0.8', '0.5', '0.2', '0']
        assert [row.endswith('<- result') for row in rows] == [False, False, False, True, False]
        ends = [match.end() for match in re.finditer(r'\S+', header)][1:]
        assert all(
            [match.end() for match in re.finditer(r'[\d.]+', row)][1:] == ends for row in rows
        )
    for chosen, mark in ((0.5, '  <- chosen'), (0.2, '  <- result, chosen'), (None, '  <- result')):
        rows = table({**report, 'chosen_weight': chosen}).splitlines()[13:18]
        assert rows[2 if chosen == 0.5 else 3].endswith(mark) and rows[3].partition('  <- ')[
            2
        ].startswith('result')


def test_report_files(tmp_path):
    report = make_report(tmp_path)
    assert write_report(report) == tmp_path / 'metrics.json'
    assert write_report({**report, 'split': 'val'}) == tmp_path / 'metrics_val.json'
    assert write_report(report, tmp_path / 'other.json') == tmp_path / 'other.json'
    ranks = report.pop('ranks')
    assert json.loads((tmp_path / 'metrics.json').read_text()) == report
    assert {path.name for path in tmp_path.iterdir()} == {
        'metrics.json',
        'metrics_val.json',
        'other.json',
        'ranks.npz',
        'ranks_val.npz',
        'other.npz',
    }
    for name in ('ranks.npz', 'ranks_val.npz', 'other.npz'):
        with np.load(tmp_path / name) as stored:
            assert {key: stored[key].tolist() for key in stored} == {
                key: ranks[key].tolist() for key in ranks
            }


def test_ranks_give_the_reported_recalls(tmp_path):
    report = make_report(tmp_path)
    ranks = report['ranks']
    assert ranks['weights'].tolist() == [row['weight'] for row in report['rows']]
    assert (
        ranks['t2v'].shape == (5, 3)
        and ranks['v2t'].shape == (5, 2)
        and ranks['owner'].tolist() == [0, 1, 1]
    )
    assert (ranks['caption_ids'].tolist(), ranks['visual_ids'].tolist()) == (
        ['a#0', 'b#0', 'b#1'],
        ['a', 'b'],
    )
    for i, row in enumerate(report['rows']):
        for way in ('t2v', 'v2t'):
            assert row[way]['R@1'] == pytest.approx(100 * np.mean(ranks[way][i] <= 1))
            assert row[way]['MeanR'] == pytest.approx(ranks[way][i].mean())


def test_visual_items_without_captions_have_no_rank():
    eval_set = fake_set()
    eval_set.visual_ids, eval_set.visual_of = ['a', 'nobody', 'b'], np.array([0, 2, 2])
    embeddings = Embeddings(*(torch.randn(3, 4) for _ in range(3)))
    ranks = evaluate(
        embeddings, eval_set, load_config(overrides=['data.collection=x']), with_ranks=True
    )['ranks']
    assert ranks['visual_ids'].tolist() == ['a', 'b'] and ranks['owner'].tolist() == [0, 1, 1]
    assert ranks['v2t'].shape == (5, 2)


def test_report_goes_here_where_the_folder_is_read_only(tmp_path, monkeypatch, capsys):
    (tmp_path / 'released').write_text('a file: nothing can be written below it, not even by root')
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    report = {**make_report(tmp_path), 'checkpoint': str(tmp_path / 'released/model_best.pth.tar')}
    assert (
        write_report(report) == tmp_path / 'here/metrics.json'
        and (tmp_path / 'here/ranks.npz').is_file()
    )
    assert 'cannot be written to' in capsys.readouterr().err
    with pytest.raises(ValueError, match='cannot write'):
        write_report(report, tmp_path / 'released/metrics.json')


def test_root_of_a_run_folder(tmp_path):
    config = load_config(REPOSITORY / 'configs/msrvttcn.yaml')
    assert root_of(tmp_path / 'msrvttcn/runs/a_zh/seed_1' / BEST, config) == tmp_path
    assert root_of(tmp_path / 'msrvtt10kcn/runs/a_zh/seed_1' / BEST, config) == tmp_path
    for elsewhere in ('vatex/runs/a_zh/seed_1', 'msrvttcn/a/b/c', 'msrvttcn/runs/seed_1'):
        with pytest.raises(ValueError, match='--rootpath is needed'):
            root_of(tmp_path / elsewhere / BEST, config)


@pytest.mark.parametrize(
    'name', ['with spaces', 'a=b', 'a,b', "it's", '#1: x', '[x]', '$HOME', 'ü']
)
def test_image_folders_of_any_name(tmp_path, name):
    (tmp_path / name).mkdir()
    config = with_images(load_config(MULTI30K), tmp_path / name)
    assert config.data.images == f'{tmp_path / name}/{{id}}.jpg'


def test_image_folder_errors(tmp_path):
    (tmp_path / '{id}').mkdir()
    with pytest.raises(ValueError, match='braces'):
        with_images(load_config(MULTI30K), tmp_path / '{id}')
    with pytest.raises(ValueError, match='no image folder'):
        with_images(load_config(MULTI30K), tmp_path / 'absent')
    with pytest.raises(ValueError, match='reads features, not images'):
        with_images(load_config(MULTI30K, ['visual.kind=pooled']), tmp_path)


@pytest.fixture(scope='module')
def run_folder(tmp_path_factory):
    """An untrained model in a run folder at its usual place below a small ROOTPATH."""
    root = tiny.make_collection(tmp_path_factory.mktemp('root with a space'))
    bert = tiny.make_bert(tmp_path_factory.mktemp('bert'))
    folder = root / 'multi30k/runs/multi30k_de/seed_1'
    folder.mkdir(parents=True)
    config = load_config(MULTI30K, tiny.options(bert))
    torch.manual_seed(0)
    model = build_model(config, feature_dim=tiny.DIM)
    save_checkpoint(
        folder / BEST,
        {
            'config': config_to_dict(config),
            'architecture': model.architecture,
            'model': model.state_dict(),
            'epoch': 3,
            'val': None,
        },
    )
    save_tokenizer(load_tokenizer(str(bert), True), folder / 'tokenizer')
    for file in bert.iterdir():  # from here on a checkpoint and its tokenizer have to do
        file.unlink()
    return folder


def test_command_line(run_folder, tmp_path, capsys):
    assert main(['--checkpoint', str(run_folder), '--save-embeddings', str(tmp_path / 'e')]) == 0
    output = capsys.readouterr().out
    report = json.loads((run_folder / 'metrics.json').read_text())
    assert table(report) in output and str(run_folder / 'metrics.json') in output
    assert (report['split'], report['captions'], report['visuals'], report['epoch']) == (
        'test',
        12,
        6,
        3,
    )
    assert report['chosen_weight'] is None is report['chosen_from']  # the checkpoint has no choice
    with np.load(run_folder / 'ranks.npz') as ranks:
        assert (
            ranks['t2v'].shape == (5, 12)
            and ranks['v2t'].shape == (5, 6)
            and ranks['caption_ids'][1] == 'test0#1'
        )
    shapes = {
        name: np.load(tmp_path / f'e/{name}.npy').shape for name in ('visual', 'en', 'tgt', 'owner')
    }
    assert shapes == {'visual': (6, 12), 'en': (12, 12), 'tgt': (12, 12), 'owner': (12,)}
    assert (tmp_path / 'e/visual_ids.txt').read_text().split() == [f'test{i}' for i in range(6)]
    assert len((tmp_path / 'e/caption_ids.txt').read_text().split()) == 12


def test_a_stored_choice_is_found_again_and_its_row_reported(run_folder, tmp_path, capsys):
    content = torch.load(run_folder / BEST, weights_only=True)
    content.pop('format')
    choice = {
        'chosen_weight': 0.35,
        'chosen_from': [{'weight': 0.35, 'SumR': 100.0}, {'weight': 0.2, 'SumR': 90.0}],
    }
    (tmp_path / 'tokenizer').symlink_to(run_folder / 'tokenizer')
    save_checkpoint(tmp_path / BEST, {**content, 'choice': choice})
    assert main(['--checkpoint', str(tmp_path), '--rootpath', str(run_folder.parents[3])]) == 0
    report = json.loads((tmp_path / 'metrics.json').read_text())
    assert {key: report[key] for key in choice} == choice
    assert [row['weight'] for row in report['rows']] == [1.0, 0.8, 0.5, 0.35, 0.2, 0.0]
    marked = [line for line in capsys.readouterr().out.splitlines() if '  <- ' in line]
    assert [line.split()[0] for line in marked] == ['0.35', '0.2'] * 2 and marked[0].endswith(
        '<- chosen'
    )


def test_command_line_on_val_with_options(run_folder, capsys):
    assert (
        main(
            [
                '--checkpoint',
                str(run_folder / BEST),
                '--split',
                'val',
                'eval.ties=mean',
                '--save-embeddings',
                '--rootpath',
                str(run_folder.parents[3]),
                'eval.weights=[0.2,0.7]',
            ]
        )
        == 0
    )
    report = json.loads((run_folder / 'metrics_val_altered.json').read_text())
    assert (report['split'], report['captions'], report['ties']) == ('val', 6, 'mean')
    assert [row['weight'] for row in report['rows']] == [0.7, 0.2]
    assert (run_folder / 'embeddings_val/en.npy').exists() and (
        run_folder / 'ranks_val_altered.npz'
    ).exists()


def test_only_the_runs_own_test_is_its_result(run_folder, tmp_path, capsys):
    folder = tmp_path / 'root/multi30k/runs/multi30k_de/seed_1'
    shutil.copytree(run_folder, folder)
    (folder / 'config.yaml').write_text('a run folder of train.py has one\n')
    (folder / 'last.pt').symlink_to(folder / BEST)
    where = ['--rootpath', str(run_folder.parents[3])]
    assert (
        main(['--checkpoint', str(folder), *where, 'compute.score_memory=9', 'text.bert=moved'])
        == 0
    )
    own = {name: (folder / name).read_bytes() for name in ('metrics.json', 'ranks.npz')}
    assert (
        json.loads(own['metrics.json'])['altered'] == []
        and not (folder / 'metrics_altered.json').exists()
    )
    for words, message in (
        ([str(folder), 'eval.ties=mean'], "eval.ties: 'pessimistic' -> 'mean'"),
        ([str(folder / 'last.pt')], 'the model of last.pt, not of model_best.pt'),
        ([str(folder), '--tokenizer', str(folder / 'tokenizer')], f'tokenizer {folder}'),
    ):
        capsys.readouterr()
        assert main(['--checkpoint', *words, *where]) == 0
        (altered,) = json.loads((folder / 'metrics_altered.json').read_text())['altered']
        assert altered.startswith(message) and message in capsys.readouterr().out
        assert (folder / 'ranks_altered.npz').exists()
        assert {name: (folder / name).read_bytes() for name in own} == own


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--checkpoint', 'absent'], 'no checkpoint at absent'),
        (['--checkpoint', 'RUN', '--rootpath', 'absent'], 'ROOTPATH absent is not a folder'),
        (['--checkpoint', 'RUN', '--device', '99'], "device '99'"),
        (['--checkpoint', 'RUN', 'eval.tie=mean'], "unknown key 'eval.tie'"),
        (
            ['--checkpoint', 'RUN', 'text.hidden=32'],
            'does an option on the command line change the model?',
        ),
        (['--checkpoint', 'RUN', '--images', '.'], 'reads features, not images'),
        (['--checkpoint', 'RUN', '--tokenizer', '/absent'], '/absent'),
        (
            ['--checkpoint', 'RUN', '--tokenizer', 'vocab.txt'],
            "the tokenizer has 31 tokens, but the model's BERT only 25",
        ),
    ],
)
def test_user_errors_are_one_clear_line(
    run_folder, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    Path('vocab.txt').write_text(
        '\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *map(str, range(26))])
    )
    assert main([str(run_folder) if word == 'RUN' else word for word in arguments]) == 2
    captured = capsys.readouterr()
    said = captured.err.splitlines()
    assert said[-1].startswith('evaluation.py: error: ') and message in said[-1]
    assert 'Traceback' not in captured.err and captured.out == ''


def test_moved_run_folder_asks_for_rootpath(run_folder, tmp_path, capsys):
    (tmp_path / BEST).write_bytes((run_folder / BEST).read_bytes())
    assert main(['--checkpoint', str(tmp_path)]) == 2
    assert '--rootpath is needed' in capsys.readouterr().err


def test_released_checkpoint(tmp_path, capsys):
    """A file in the released layout; its options name the collection, the command line the rest."""
    folder = tmp_path / 'runs_0'
    folder.mkdir()
    spec = json.loads((GOLDEN / 'resnet.json').read_text(encoding='utf-8'))
    write_released_checkpoint(spec, folder / 'model_best.pth.tar')
    root, bert = tiny.make_collection(tmp_path / 'root', dim=40), tiny.make_bert(tmp_path / 'bert')
    assert (
        main(
            [
                '--checkpoint',
                str(folder),
                '--rootpath',
                str(root),
                '--tokenizer',
                str(bert),
                'data.lang=de',
                'data.task=1',
            ]
        )
        == 0
    )
    (root / f'multi30k/TextData/{TRANSLATED}').unlink()
    assert (
        main(
            [
                '--checkpoint',
                str(folder),
                '--rootpath',
                str(root),
                '--tokenizer',
                str(bert),
                'data.lang=de',
                'data.task=1',
                'eval.weights=[0]',
                '--output',
                str(tmp_path / 'w0.json'),
            ]
        )
        == 0
    )
    assert [row['weight'] for row in json.loads((tmp_path / 'w0.json').read_text())['rows']] == [0]
    report = json.loads((folder / 'metrics.json').read_text())
    assert (report['epoch'], report['collection'], report['visuals'], len(report['rows'])) == (
        7,
        'multi30k',
        6,
        5,
    )


TRANSLATED, HUMAN = (
    'multi30ktest_google_de2enc_2016_task1.caption.txt',
    'multi30ktest_de_2016_task1.caption.txt',
)


@pytest.mark.parametrize('weight, absent, name', [(0, TRANSLATED, 'en'), (1, HUMAN, 'tgt')])
def test_queries_of_one_branch_alone(run_folder, tmp_path, capsys, weight, absent, name):
    """The row that validation's w would have is not there; the others' figures are those of both
    branches."""
    root = shutil.copytree(run_folder.parents[3], tmp_path / 'root', ignore=lambda *_: [absent])
    words = [
        '--checkpoint',
        str(run_folder),
        '--output',
        str(tmp_path / 'one.json'),
        '--save-embeddings',
        str(tmp_path),
    ]
    assert main([*words, '--rootpath', str(run_folder.parents[3])]) == 0
    both = json.loads((tmp_path / 'one.json').read_text())
    assert main([*words, '--rootpath', str(root)]) == 2
    assert f"no captions (branch '{name}') of split 'test'" in capsys.readouterr().err
    assert main([*words, '--rootpath', str(root), f'eval.weights=[{weight}]']) == 0
    one = json.loads((tmp_path / 'one.json').read_text())
    (row,) = one['rows']
    assert row == both['rows'][-1 if weight == 0 else 0]
    assert one['captions'] == 12 and not (tmp_path / f'{name}.npy').exists()
    options = [*tiny.options(tmp_path / 'none'), f'eval.weights=[{weight}]']
    config = ['--config', str(MULTI30K), '--rootpath', str(root), '--split', 'test']
    assert (
        check_data.main([*config, *options, f'text.bert={tiny.make_bert(tmp_path / "bert")}']) == 0
    )
    assert check_data.main([*config, *tiny.options(tmp_path / 'bert')]) == 1


def test_a_weight_without_its_branch_is_refused():
    config = load_config(overrides=['data.collection=x'])
    embeddings = Embeddings(torch.randn(2, 4), tgt=torch.randn(3, 4))
    assert [row['weight'] for row in evaluate(embeddings, fake_set(), config, [0])['rows']] == [0]
    with pytest.raises(ValueError, match="no 'en' queries were encoded, so w = 0.2"):
        evaluate(embeddings, fake_set(), config, [0.2])


def test_what_was_left_out_is_in_the_report(run_folder, tmp_path, capsys):
    root = shutil.copytree(run_folder.parents[3], tmp_path / 'root')
    for path in (root / 'multi30k/TextData').glob('multi30ktest*'):
        path.write_text(path.read_text().replace('test3.jpg', 'gone.jpg'))
    words = [
        '--checkpoint',
        str(run_folder),
        '--rootpath',
        str(root),
        '--output',
        str(tmp_path / 'r.json'),
    ]
    assert main(words) == 2 and 'data.missing=skip' in capsys.readouterr().err
    assert main([*words, 'data.missing=skip']) == 0
    report = json.loads((tmp_path / 'r.json').read_text())
    assert report['left_out'] == {'captions': 2, 'of_captions': 12, 'visuals': 1, 'of_visuals': 7}
    assert (report['captions'], report['visuals']) == (10, 6)  # the gallery is the id list's
    assert 'Without 2 of 12 captions' in capsys.readouterr().out
    assert report['altered'] == ["data.missing: 'error' -> 'skip'"]


def test_an_option_is_not_taken_for_the_embeddings_folder(run_folder):
    assert (
        main(
            [
                '--checkpoint',
                str(run_folder),
                '--save-embeddings',
                'compute.score_memory=9',
                '--rootpath',
                str(run_folder.parents[3]),
            ]
        )
        == 0
    )
    assert (run_folder / 'embeddings_test/en.npy').exists()


@pytest.mark.parametrize('output', ['result.npz', 'absent/result.json'])
def test_an_output_that_cannot_be_is_refused_at_once(
    run_folder, tmp_path, monkeypatch, capsys, output
):
    monkeypatch.setattr(evaluation, 'evaluate_checkpoint', lambda *_, **__: pytest.fail('at once'))
    assert main(['--checkpoint', str(run_folder), '--output', str(tmp_path / output)]) == 2
    assert 'expected the name of a JSON file in an existing folder' in capsys.readouterr().err


def test_interrupted(run_folder, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, 'evaluate_checkpoint', interrupt)
    assert main(['--checkpoint', str(run_folder)]) == 130
    assert capsys.readouterr().err == 'evaluation.py: interrupted\n'


def test_another_kind_of_visual_item_is_refused(run_folder, capsys):
    assert main(['--checkpoint', str(run_folder), 'visual.kind=clip']) == 2
    assert (
        "key 'visual.kind' is 'clip', but the model reads features 10 wide"
        in capsys.readouterr().err
    )
