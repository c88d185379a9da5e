"""The flags of the command line, and `--config.*` among its arguments."""

from absl import flags

from g16net.cli.modes import MODES
from g16net.config import FIELDS

FLAGS = flags.FLAGS
flags.DEFINE_string("experiment", None, "Name of an experiment or a .py file, with its arguments after a colon.")
flags.DEFINE_list("mode", ["train", "evaluate", "export"], "What to do, in order.")
flags.DEFINE_string("workdir", None, "Folder of the run; a run that is there is resumed. Default: runs/EXPERIMENT.")
flags.DEFINE_string("data", None, "A folder with data, or a source: digits, synthetic, tfds:NAME, hf:NAME.")
flags.DEFINE_bool("dry_run", False, "Print the resolved config, costs and steps, and exit.")
flags.DEFINE_bool("list", False, "List the experiments and exit.")
flags.DEFINE_bool("version", False, "Print the version and exit.")
flags.DEFINE_string("format", "", "The same as --config.export.format.")
flags.DEFINE_string("file", "", "The exported file; default: where export writes it.")
flags.DEFINE_list(
    "machines",
    ["ipu_mk2", "a100_40gb", "cpu"],
    "Among ipu_mk2, ipu_mk2_x16, a100_40gb, a100_80gb, h100_80gb, c5_metal and cpu, this one.",
)
flags.DEFINE_list("devices", [], "Plan the run on so many devices of each machine, such as 1,8,64.")
flags.DEFINE_list("compare", [], "readings (of the paper), measured (networks run here, minutes).")
flags.DEFINE_multi_string("images", [], "Image files, folders and globs, separated by commas or in a flag each.")
flags.DEFINE_integer("jobs", 1, "Runs at a time on this machine.", 1)
flags.DEFINE_string(
    "cluster", "", "Do the runs on a Ray cluster: auto (the one of this machine), HOST:PORT or ray://HOST:PORT."
)
flags.DEFINE_string("shard", "", "Do a part of the runs: 3/10 is the third of ten.")
flags.DEFINE_bool("retry", False, "Try failed runs again.")
flags.DEFINE_list("peers", [], "Libraries to compare with: timm and keras (benchmark), timm and tf (benchmark_data).")
flags.DEFINE_multi_string(
    "runs",
    [],
    "Folders of runs, sweeps, benchmarks and costs, report.json files, or globs of them; with commas between.",
)
flags.DEFINE_bool("quoted", True, "Show the readings off the paper's figure as well.")
flags.DEFINE_string("role", "", "dispatcher or worker.")
flags.DEFINE_integer("port", 0, "Port to listen on; 0 takes a free one.")
flags.DEFINE_string("dispatcher", "", "HOST:PORT of the worker's dispatcher.")
flags.DEFINE_string("host", "localhost", "Name under which others reach this worker.")


def options(mode):
    """The values of the flags that the function of `mode` takes, by name."""
    return {name: FLAGS[name].value for name in MODES[mode].flags if name != "format"}


def split_assignments(argv):
    """Separates `--config.key=value` (or `--config.key value`) from the other arguments."""
    rest, assignments, arguments = [], [], iter(argv)
    for argument in arguments:
        name = argument.lstrip("-")
        if argument.startswith("-") and name.startswith("config."):
            key, equals, value = name[len("config.") :].partition("=")
            if not equals:
                value = next(arguments, "")
            assignments.append((key, value))
        else:
            rest.append(argument)
    return rest, assignments


def fields_named(arguments):
    """A hint where a field of the config was given as a flag: ` The field is --config.run.epochs=...`."""
    given = {argument.lstrip("-").partition("=")[0] for argument in arguments[1:]} - set(FLAGS)
    meant = [key for key in FIELDS if key in given or key.split(".")[1] in given]
    return f". The field is --config.{' or --config.'.join(meant)}" if meant else ""
