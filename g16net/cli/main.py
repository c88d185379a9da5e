"""The command line: `launch.py` and the console command `g16net`.

    launch.py --experiment=g16_ln_pn:variant=B2,resolution=half --workdir=DIR --config.run.epochs=100

Exit status: 0; 1 where a run failed, an export differs from its checkpoint, or an image for prediction is broken;
2 where the command, the config or the data is wrong; 128 and the signal's number where SIGTERM or SIGINT ended a
training that saved, or where nobody read the output to its end.
"""

from g16net.cli import environment  # isort: skip  before anything that may import TensorFlow

import logging as std_logging
import os
import sys

from absl import app, flags, logging

import g16net
from g16net.cli import command, help
from g16net.cli.flags import FLAGS, fields_named, split_assignments
from g16net.errors import RunError, UserError
from g16net.run.signals import Stopped

__all__ = ["environment", "main"]


def main(argv=None):
    """Runs the command line `argv` (default: the process's own) and exits with its status."""
    try:
        try:
            run_line(sys.argv if argv is None else argv)
        finally:
            if sys.stdout:  # none where it was closed from the start
                sys.stdout.flush()
    except BrokenPipeError:  # the reader has enough, as `head`; what Python would still write to it goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as of SIGPIPE, which is 13 and which not every system has


def run_line(argv):
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be UTF-8, nor the terminal
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    topic = help.asked(argv[1:])
    if topic is not None:
        try:
            print(help.text(topic))
        except UserError as error:
            fail(str(error))
        sys.exit(0)
    arguments, assignments = split_assignments(argv)

    def parse(_):
        try:
            return FLAGS(arguments)
        except flags.Error as error:
            fail(str(error) + fields_named(arguments))

    app.run(lambda rest: sys.exit(run(rest, assignments)), argv=arguments, flags_parser=parse)


def run(rest, assignments):
    """Does what the parsed flags ask. Returns the exit status."""
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(None)
    logging.get_absl_logger().addFilter(ours_or_warning)
    try:
        if rest[1:]:
            raise UserError(f"unexpected argument {rest[1]!r}; flags have the form --name=value, see --help")
        if FLAGS.version:
            print(f"g16net {g16net.__version__}")
            return 0
        if FLAGS.list:
            print(help.experiments_text())
            return 0
        return command.execute(assignments, main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        print(stop, file=sys.stderr)
        return stop.status


def ours_or_warning(record):
    """Whether a log record is for the user: everything of g16net, of others what is a warning or worse."""
    return record.levelno >= std_logging.WARNING or os.sep + "g16net" + os.sep in record.pathname


def fail(message):
    """Prints the message as every mistake's, and ends with status 2."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
