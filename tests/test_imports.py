"""The house rules that can be read off the sources: who imports whom, and what never stands in the
code."""

import ast
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
MAY_IMPORT = {  # of this project's modules
    'basic': {'basic'},
    'model': {'basic'},
    'loss': {'basic'},
    'data_provider': {'basic'},
    'evaluation': {'basic', 'model', 'loss', 'data_provider'},
    'train': {'basic', 'model', 'loss', 'data_provider', 'evaluation'},
    'util': {'basic', 'model', 'loss', 'data_provider', 'evaluation', 'train', 'util'},
}
CODE = sorted(
    path
    for pattern in ('*.py', 'basic/**/*.py', 'util/**/*.py')
    for path in REPOSITORY.glob(pattern)
)
ALL = CODE + sorted(REPOSITORY.glob('tests/*.py'))


def name(path):
    return path.relative_to(REPOSITORY).as_posix()


def imported(tree):
    """The first parts of the modules that a syntax tree imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, 'imports are absolute here'
            yield node.module.split('.')[0]


def parse(path):
    return ast.parse(path.read_text(encoding='utf-8'), filename=str(path))


def test_every_file_of_the_house_is_there():
    assert set(MAY_IMPORT) <= {
        path.relative_to(REPOSITORY).parts[0].removesuffix('.py') for path in CODE
    }


@pytest.mark.parametrize('path', CODE, ids=name)
def test_imports_go_one_way(path):
    part = path.relative_to(REPOSITORY).parts[0].removesuffix('.py')
    assert part in MAY_IMPORT, f'{name(path)} is new: say in MAY_IMPORT what it may import'
    ours = set(imported(parse(path))) & {*MAY_IMPORT, 'tests', 'conftest'}
    assert ours <= MAY_IMPORT[part], f'{name(path)} imports {ours - MAY_IMPORT[part]}'


@pytest.mark.parametrize('path', CODE, ids=name)
def test_what_is_imported_is_installed_with_the_project(path):
    """Its import name is in requirements.txt, or comes with one that is there; for a tool also in
    util/requirements-*.txt, and for basic/videos.py, which does without unless it has to decode."""
    optional = name(path).startswith('util') or name(path) == 'basic/videos.py'
    extras = REPOSITORY.glob('util/requirements-*.txt') if optional else ()
    declared = {
        line.split('==')[0].lower()
        for file in (REPOSITORY / 'requirements.txt', *extras)
        for line in file.read_text().splitlines()
    }
    package = {
        'yaml': 'pyyaml',
        'PIL': 'pillow',
        'huggingface_hub': 'transformers',
        'safetensors': 'transformers',
    }
    third_party = set(imported(parse(path))) - set(MAY_IMPORT) - sys.stdlib_module_names
    assert {package.get(module, module) for module in third_party} <= declared


@pytest.mark.parametrize('path', ALL, ids=name)
def test_nothing_is_evaluated_swallowed_or_imported_wholesale(path):
    for node in ast.walk(parse(path)):
        where = f'{name(path)}:{getattr(node, "lineno", 0)}'
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ('eval', 'exec', '__import__'), (
                f'{where}: {node.func.id}() runs data as code'
            )
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f'{where}: a bare except'
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != '*' for alias in node.names), f'{where}: a wildcard import'


@pytest.mark.parametrize('path', CODE, ids=name)
def test_files_are_loaded_as_data(path):
    """torch.load says weights_only=True, np.load does not allow pickles, and pickle and yaml.load
    are not used."""
    tree = parse(path)
    assert not {'pickle', 'cPickle', 'dill', 'joblib'} & set(imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            call, options = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            where = f'{name(path)}:{node.lineno}'
            if call == 'torch.load':
                assert getattr(options.get('weights_only'), 'value', None) is True, where
            if call == 'np.load':
                assert getattr(options.get('allow_pickle'), 'value', False) is False, where
            assert call not in ('yaml.load', 'yaml.unsafe_load', 'yaml.full_load'), where


def test_the_checks_see_what_they_look_for():
    tree = ast.parse('import os, train.x\nfrom util.a import b\ndef f():\n    from basic import c')
    assert set(imported(tree)) == {'os', 'train', 'util', 'basic'}
