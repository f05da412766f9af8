"""The command line: parse and call, nothing else.

Nothing heavy is imported before `main` runs, so that Ctrl-C is one sentence from then on.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence

from c3jax.commands import terminal
from c3jax.run.interrupt import STOPPED, TERMINATED, Terminated, exit_in_imports, leave_others
from c3jax.types import LostError, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EPIPE)  # of standard output: disk full, nobody reads


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 failed, 2 the user can mend it, 130 stopped by
    Ctrl-C, 75 by SIGTERM, 3 by an alarm of its config: what was stopped goes on when it is started again.
    """
    try:
        with exit_in_imports():
            code = _run(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
            return code
    except UserError as error:
        terminal.complain(str(error))
        return 2
    except LostError as error:
        terminal.complain(str(error))
        sys.stderr.flush()
        os._exit(1)  # the runtime would wait for the lost one at its end
    except KeyboardInterrupt as error:
        terminal.complain("stopped")
        code = TERMINATED if isinstance(error, Terminated) else STOPPED
        leave_others(code)
        return code
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still holds goes nowhere
        terminal.complain(f"the output cannot be written ({error.strerror})")
        return 1


def _run(words: list[str]) -> int:
    import warnings

    from c3jax.commands import parser

    for stream in (sys.stdout, sys.stderr):  # a terminal may have no letters but ASCII's
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        " ".join(words).encode()  # names stand in JSON and YAML files
        os.getcwd()
    except UnicodeEncodeError:
        raise UserError(f"expected words in UTF-8, got {ascii(' '.join(words))}") from None
    except FileNotFoundError:
        raise UserError("expected a folder to run in, got one that is gone") from None
    # XLA would warn of a compile of two minutes in six lines, in the midst of ours about it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.showwarning = _print_warning
    arguments, overrides = parser.parse_words(words)
    return arguments.run(arguments, overrides)


def _print_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Print what a user can do something about; what libraries tell each other's developers is not."""
    if category is UserWarning:
        terminal.complain(f"warning: {message}")


if __name__ == "__main__":
    sys.exit(main())
