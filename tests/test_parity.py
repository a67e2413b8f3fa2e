"""The released figures, all of them, and proof that the comparison can fail."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from util import verify_parity

GOLDEN = Path(__file__).parent / 'data' / 'golden'


def test_every_released_figure_is_reproduced():
    rows = verify_parity.verify(GOLDEN)
    assert [row for row in rows if not verify_parity.passes(row)] == []
    # needs mBERT's vocabulary
    assert [row.file for row in rows if row.deviation is None] == ['tokens']
    figures = {(row.file, row.figure) for row in rows}
    for file in ('video', 'resnet', 'clip', 'weak'):
        for figure in (
            'eval_visual',
            'eval_cross',
            'term_values',
            'term_gradient_norms',
            'running_var_text',
            'train_trajectory, step 1',
            'train_trajectory, steps 3 to 5',
            'weight_change_norms',
            'after_translation',
        ):
            assert (file, figure) in figures
    assert ('metrics_noisy', 'metrics at w = 0.2') in figures


def test_attention_is_written_out_unless_asked_otherwise(monkeypatch):
    """As it was for the figures: fused kernels differ between CPUs by more than is allowed."""
    seen, make_run = [], verify_parity.make_run

    def noting(checkpoint, *more, **options):
        seen.append(checkpoint.config.compute.attention)
        return make_run(checkpoint, *more, **options)

    monkeypatch.setattr(verify_parity, 'make_run', noting)
    exact, other = (
        verify_parity.check_model(GOLDEN / 'resnet.json', torch.device('cpu'), options)
        for options in ((), ['compute.attention=fused'])
    )
    assert seen == 2 * ['eager'] + 2 * ['fused']
    wider = [row.tolerance * verify_parity.OTHER_KERNELS for row in exact]
    assert [row.tolerance for row in other] == wider


@pytest.mark.parametrize(
    'option',
    [
        'text.score_scale=key_width',
        'text.pooling=mean',
        'loss.margin=0.21',
        'loss.detach_cross_feature=true',
        'text.trained_layers=[2]',
    ],
)
def test_another_computation_is_noticed(option, monkeypatch):
    monkeypatch.setattr(verify_parity, 'NO_DROPOUT', (*verify_parity.NO_DROPOUT, option))
    rows = verify_parity.check_model(GOLDEN / 'resnet.json', torch.device('cpu'))
    assert any(not verify_parity.passes(row) for row in rows)


def test_a_set_of_another_form_is_read_as_it_is(tmp_path):
    """Fewer pairs and steps, other options: what does not depend on them must still agree."""
    spec = json.loads((GOLDEN / 'resnet.json').read_text())
    golden = dict(np.load(GOLDEN / 'resnet.npz'))
    spec['opt'].update(
        scale=0.0,
        back_w=0,
        l1_gama=0,
        collection='mscoco',
        data_type='google_enc2ja',
        disc_type='weak',
    )
    del spec['opt']['batch_size'], spec['opt']['task']
    spec['shapes'][4] = json.loads((GOLDEN / 'weak.json').read_text())['shapes'][4]
    n = len(golden['features'])
    golden = {name: value[:3] if len(value) == n else value for name, value in golden.items()}
    golden['train_trajectory'] = golden['train_trajectory'][:1]
    (tmp_path / 'other.json').write_text(json.dumps(spec))
    np.savez(tmp_path / 'other.npz', **golden)
    rows = {row.figure: row for row in verify_parity.verify(tmp_path)}
    assert {figure for figure in rows if 'trajectory' in figure} == {'train_trajectory, step 1'}
    assert verify_parity.passes(rows['eval_visual']) and verify_parity.passes(rows['eval_source'])
    assert not verify_parity.passes(rows['train_trajectory, step 1'])  # of other terms' weights


def test_the_command_line_fails_on_a_wrong_figure(tmp_path, capsys):
    golden = dict(np.load(GOLDEN / 'metrics.npz'))
    golden['weights_t2v_v2t'][1, 3] += 0.01
    np.savez(tmp_path / 'metrics.npz', **golden)
    assert verify_parity.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert printed.count('FAILED') == 1 and '5 of 6 figures' in printed


def test_tokens_are_compared_one_by_one(tmp_path, capsys):
    vocab = tmp_path / 'vocab.txt'
    vocab.write_text(
        '\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'cafe', '.']) + '\n'
    )
    entries = [
        {'branch': 'en', 'caption': 'A  a!', 'ids': [2, 5, 5, 7, 3]},
        {'branch': 'raw', 'caption': 'Café', 'ids': [2, 6, 3]},
    ]
    (tmp_path / 'tokens.json').write_text(json.dumps(entries))
    assert verify_parity.main([str(tmp_path), '--vocab', str(vocab)]) == 0
    entries[1]['ids'] = [2, 1, 3]
    (tmp_path / 'tokens.json').write_text(json.dumps(entries))
    assert verify_parity.main([str(tmp_path), '--vocab', str(vocab)]) == 1
    assert "'Café'" in capsys.readouterr().out


def test_a_folder_without_figures_is_refused(tmp_path, capsys):
    assert verify_parity.main([str(tmp_path)]) == 2
    assert 'no golden figures' in capsys.readouterr().err
    shutil.copy(GOLDEN / 'video.json', tmp_path)
    assert verify_parity.main([str(tmp_path)]) == 2
    assert 'video.npz' in capsys.readouterr().err
