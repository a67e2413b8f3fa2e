"""Run the drivers with a stand-in for Python that records what it is asked for."""

import json
import os
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

# Writes its arguments, and the command that the driver says was typed, as a JSON list; a tool is
# recorded as its name and its arguments. Fails where an argument is the value of $FAIL.
STAND_IN = r"""#!/usr/bin/env bash
[ "$2" != -c ] || set -- "$5" "${@:6}"
printf '%s' "$NRCCR_TYPED" > "$RECORD.typed"
{ printf '['; separator=
  for word in "$@"; do
    word=${word//\\/\\\\}; printf '%s"%s"' "$separator" "${word//\"/\\\"}"; separator=,
  done
  printf ']\n'; } >> "$RECORD"
for word in "$@"; do [ "$word" != "$FAIL" ] || exit 3; done
"""


class Recorder:
    """A stand-in for Python in `folder`, and what it was asked for."""

    def __init__(self, folder):
        self.record, self.python = folder / 'record', folder / 'stand in'
        self.python.write_text(STAND_IN)
        self.python.chmod(0o755)

    def run(self, words, cwd, fail='', **environment):
        """(finished process, list of the commands that Python was asked to run)."""
        self.record.unlink(missing_ok=True)
        done = subprocess.run(
            words,
            cwd=cwd,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                'PYTHON': str(self.python),
                'RECORD': str(self.record),
                'FAIL': fail,
                **environment,
            },
        )
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        return done, [json.loads(line) for line in lines]

    @property
    def typed(self):
        """The last command as the driver says it was typed."""
        return self.record.with_name('record.typed').read_text()
