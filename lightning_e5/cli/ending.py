"""How a command ends: its exit code and its last words, without the secrets that a message may quote."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable

from lightning_e5.errors import TrainingStopped, UserError
from lightning_e5.interrupts import exit_code, said_of
from lightning_e5.progress import printable
from lightning_e5.redaction import hidden_message


def complain(text: str) -> None:
    """Print a message about what went wrong, which may quote what the user gave, secrets included."""
    print(printable(hidden_message(text)), file=sys.stderr)


def ending(command: Callable[[], int]) -> int:
    """Call ``command``; its exit code, or that of its failure after one sentence: 1 for a training that stopped, 2 for what the
    user gave or the machine lacks, 130 and 143 for signals. Anything else is our defect and goes on as it is."""
    try:
        return command()
    except TrainingStopped as error:
        complain(f"stopped: {error}")
        return 1
    except RuntimeError as error:
        if "torch" not in sys.modules:
            raise
        from lightning_e5.rng import refusal

        if (sentence := refusal(error)) is None:
            raise
        complain(f"error: {sentence}")
    except SystemExit as error:
        if error.code != exit_code(signal.SIGTERM):
            raise
        print(said_of(signal.SIGTERM), file=sys.stderr)
        return error.code
    except UserError as error:
        complain(f"error: {error}")
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM, errno.EFBIG, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise
        place = str(error.filename or "a file")
        complain(f"error: {place if len(place) <= 200 else f'{place[:200]}...'}: {error.strerror}; nothing half-written is used")
    except ValueError as error:  # of the operating system's functions, which name no file
        if not isinstance(error, UnicodeEncodeError) and "null byte" not in str(error) and "null character" not in str(error):
            raise
        complain(f"error: a name or text that was given cannot be one of a file ({error})")
    except KeyboardInterrupt:
        print(said_of(signal.SIGINT), file=sys.stderr)
        return exit_code(signal.SIGINT)
    return 2


def show_defect(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
    """`sys.excepthook`: a traceback without the secrets that the messages in it may quote."""
    complain("".join(traceback.format_exception(kind, error, trace)).rstrip())
