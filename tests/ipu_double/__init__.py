"""A stand-in for the IPU SDK, made from a table of its public names (`api.json`), that trains really, on the CPU.

It refuses every name, parameter, type and combination that the table lacks or its rules forbid, with the SDK's kinds of
errors, and notes which names a program used. `models` holds what the SDK adds to Keras models.

What it cannot show: whether a program fits the device's memory, compiles on it, is fast, or is exact in float16.
"""

import contextlib
import copy
import enum
import importlib
import inspect
import json
import os
import sys
import types

import tensorflow as tf
from tensorflow import keras

with open(os.path.join(os.path.dirname(__file__), "api.json"), encoding="utf-8") as _file:
    API = json.load(_file)
ROOT = "tensorflow.python.ipu"
KINDS = {
    "positional_or_keyword": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "keyword_only": inspect.Parameter.KEYWORD_ONLY,
    "var_positional": inspect.Parameter.VAR_POSITIONAL,
    "var_keyword": inspect.Parameter.VAR_KEYWORD,
}


def signature(params):
    """The `inspect.Signature` of a list of parameters of the table."""
    return inspect.Signature(
        [
            inspect.Parameter(
                p["name"],
                KINDS[p.get("kind", "positional_or_keyword")],
                default=p["default"] if "default" in p else inspect.Parameter.empty,
            )
            for p in params
        ]
    )


def check_call(what, entry, arguments, keywords):
    """Raises TypeError or ValueError where a call does not fit its entry in the table."""
    try:
        signature(entry["params"]).bind(*arguments, **keywords)
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from None
    named = {p["name"] for p in entry["params"]}
    for key in set(keywords) - named:
        if key in entry.get("var_keyword_rejects", ()):
            raise ValueError(f"{what}: {key} is set by Keras or not compatible with it")
        if "var_keyword_accepts" in entry and key not in entry["var_keyword_accepts"]:
            raise TypeError(f"{what}: the SDK has no option {key!r}")


def external(functions):
    """`{name: [parameters]}` of a package outside the table's signatures, as entries; some parameters are optional."""

    def params(texts):
        if texts == ["*"]:
            return [{"name": "arguments", "kind": "var_positional"}]
        return [
            dict({"name": text.split(" ")[0]}, **({"default": None} if "optional" in text else {})) for text in texts
        ]

    return {name: {"params": params(texts)} for name, texts in functions.items()}


class Category:
    """`IPUConfig`, or one of its categories: refuses unknown names and wrong types as the SDK does."""

    def __init__(self, double, values=None, path=""):
        object.__setattr__(self, "_state", (double, {} if values is None else values, path))

    def _key(self, name):
        double, values, path = self._state
        key = path + name
        entry = API["symbols"][f"{ROOT}.config.IPUConfig"]
        if key not in entry["attributes"] and key not in entry["categories"]:
            raise ValueError(f"IPUConfig has no attribute {key!r}")
        double.used.add(f"{ROOT}.config.IPUConfig.{key}")
        return key, entry

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        double, values, _ = self._state
        if name == "configure_ipu_system":
            double.used.add(f"{ROOT}.config.IPUConfig.configure_ipu_system")
            return lambda device="cpu": double.configure(self)
        key, entry = self._key(name)
        if key in entry["categories"]:
            return Category(double, values, key + ".")
        return values.setdefault(key, double.default_of(entry["attributes"][key]))

    def __setattr__(self, name, value):
        double, values, _ = self._state
        key, entry = self._key(name)
        if key in entry["categories"]:
            raise Exception(f"IPUConfig: {key} is a category and cannot be assigned to")
        attribute = entry["attributes"][key]
        if attribute["type"].startswith("typing.Union"):
            right = type(value) in (int, list, tuple)
        elif "enum" in attribute:
            right = isinstance(value, double.symbol(attribute["enum"]))
        else:
            right = type(value).__name__ == attribute["type"]
        if not right:
            raise TypeError(f"IPUConfig.{key} is {attribute['type']}, got {value!r}")
        if "enum" not in attribute and value not in attribute.get("allowed", [value]):
            raise ValueError(f"IPUConfig.{key} is one of {attribute['allowed']}, got {value!r}")
        values[key] = value

    def value(self, key):
        """The value of a dotted key, without noting that it was read."""
        double, values, _ = self._state
        return values.get(key, double.default_of(API["symbols"][f"{ROOT}.config.IPUConfig"]["attributes"][key]))


class Double:
    """A machine with IPUs and the SDK.

    Args:
        ipus: in the machine.
        poprun: None, or what poprun would set: a dict of instances, index, replicas and ipus_per_replica.

    Attributes:
        used: dotted names of the table that were used.
        config: the configuration of the devices, once configured.
        local_ipus: attached to this process.
        seed: of the devices' random numbers.
        allreduce: what sums a value over processes.
    """

    def __init__(self, ipus=16, poprun=None):
        self.ipus, self.poprun = ipus, poprun
        self.used, self.config, self.local_ipus, self.seed = set(), None, 0, None
        self.means = []
        self.allreduce = lambda value: value
        self._symbols = {}

    def symbol(self, name):
        """The object that stands for a dotted name of the table."""
        if name not in self._symbols:
            entry = API["symbols"][name]
            self._symbols[name] = {
                "enum": self._enum,
                "alias": lambda name, entry: self.symbol(entry["of"]),
                "config": lambda name, entry: self._callable(name, entry, lambda: Category(self)),
                "function": self._function,
                "class": self._class,
            }[entry["kind"]](name, entry)
        return self._symbols[name]

    def default_of(self, attribute):
        value = copy.copy(attribute["default"])
        return self.symbol(attribute["enum"])[value] if "enum" in attribute else value

    def _enum(self, name, entry):
        kind = enum.IntEnum if entry["int_enum"] else enum.Enum
        made = kind(name.split(".")[-1], entry["members"])
        if "from_bool" in entry["methods"]:
            made.from_bool = staticmethod(lambda value: made["ON" if value else "OFF"])
        if "parse" in entry["methods"]:
            made.parse = classmethod(_parse)
        return made

    def _callable(self, name, entry, behaviour):
        def call(*arguments, **keywords):
            check_call(name, entry, arguments, keywords)
            self.used.add(name)
            return behaviour(*arguments, **keywords)

        return call

    def _function(self, name, entry):
        def no_behaviour(*arguments, **keywords):
            raise NotImplementedError(f"the double does not execute {name}")

        behaviour = {
            f"{ROOT}.config.configure_ipu_system": lambda config, **_: self.configure(config),
            f"{ROOT}.utils.reset_ipu_seed": lambda seed, **_: self._reset_seed(seed),
            f"{ROOT}.ops.cross_replica_ops.cross_replica_mean": self._mean,
            f"{ROOT}.distributed.host_collective_ops.allreduce": lambda value, reduce_op: self.allreduce(value),
        }.get(name, no_behaviour)
        return self._callable(name, entry, behaviour)

    def _reset_seed(self, seed):
        if not -(2**31) <= seed < 2**31:
            raise tf.errors.InvalidArgumentError(None, None, f"Attr seed has value {seed} out of range for an int32")
        self.seed = seed

    def _mean(self, x, **_):
        self.means.append(x)  # replicas run one after the other: whoever runs them takes the mean of what they return
        return x

    def _class(self, name, entry):
        short = name.split(".")[-1]
        if short in ("IPUStrategyV1", "PopDistStrategy"):
            return self._strategy(name, short, entry)
        if short == "FunctionalLayerPipelineStageAssignment":
            from ipu_double.models import Assignment

            return Assignment
        return self._callable(name, entry, lambda *a, **k: None)

    def _strategy(self, name, short, entry):
        double = self

        class Strategy(tf.distribute.OneDeviceStrategy):
            ipu_double = double

            def __init__(self, *arguments, **keywords):
                check_call(name, entry, arguments, keywords)
                double.used.add(name)
                if short == "PopDistStrategy" and not double.poprun:
                    raise RuntimeError("PopDistStrategy needs poprun")
                super().__init__("/cpu:0")

            @property
            def num_replicas_in_sync(self):
                return double.poprun["replicas"] if short == "PopDistStrategy" else 1

            def scope(self):
                return _Scope(super().scope(), distributed=short == "PopDistStrategy")

        Strategy.__name__ = Strategy.__qualname__ = short
        return Strategy

    @property
    def instances(self):
        return self.poprun["instances"] if self.poprun else 1

    def configure(self, config):
        """Applies an `IPUConfig`, or raises as the SDK does."""
        for key in ("convolutions", "matmuls", "compilation"):
            key = f"{key}_poplar_options" if key == "compilation" else f"{key}.poplar_options"
            for option, value in config.value(key).items():
                if not isinstance(option, str) or not isinstance(value, str):
                    raise TypeError(f"IPUConfig.{key}: keys and values must be str, got {option!r}: {value!r}")
                known = API["poplar_option_keys_seen"][key].get(option)
                if known is None or (isinstance(known, list) and value not in known):
                    raise ValueError(f"IPUConfig.{key}: unknown option {option}={value}")
                if known and not isinstance(known, list) and not 0 < float(value) <= 1:
                    raise ValueError(f"IPUConfig.{key}: {option}={value} is not in (0, 1]")
        chosen, automatic = config.value("select_ipus"), config.value("auto_select_ipus")
        if chosen != [] and automatic != []:
            raise Exception("both select_ipus and auto_select_ipus are set")
        if chosen == [] and automatic == []:
            raise Exception("no IPUs were selected")
        if config.value("device_connection.type").name in ("PRE_COMPILE", "NEVER"):
            if not config.value("device_connection.version"):
                raise ValueError("device_connection.version must be set for PRE_COMPILE and NEVER")
        if config.value("io_tiles.place_ops_on_io_tiles") and config.value("io_tiles.num_io_tiles") <= 0:
            raise ValueError("io_tiles.place_ops_on_io_tiles needs num_io_tiles > 0")
        count = self.poprun["replicas"] * self.poprun["ipus_per_replica"] if chosen != [] else automatic
        if count > self.ipus or count & (count - 1):
            raise RuntimeError(f"no device with {count} IPUs in a machine of {self.ipus}")
        self.config, self.local_ipus = config, count // self.instances

    def modules(self):
        """`{name: module}` of everything that a program can import."""
        found = {ROOT: _Module(ROOT, {})}
        for name in API["symbols"]:
            if name.startswith(ROOT):
                path, short = name.rsplit(".", 1)
                for depth in range(ROOT.count(".") + 1, path.count(".") + 1):
                    part = ".".join(path.split(".")[: depth + 1])
                    found.setdefault(part, _Module(part, {}))
                found[path].names[short] = self.symbol(name)
        for alias, target in API["import_aliases"].items():
            parent, _, short = alias.replace("ipu", ROOT, 1).rpartition(".")
            value = found.get(target) or (API["symbols"].get(target) and self.symbol(target))
            if parent in found and value and f"{parent}.{short}" not in API["not_imported_by_ipu_package"]:
                found[parent].names.setdefault(short, value)
        if self.poprun is not None:
            found.update(self._popdist())
        return found

    def _popdist(self):
        run = self.poprun
        answers = {
            "isPopdistEnvSet": lambda: bool(run),
            "getNumInstances": lambda: run["instances"],
            "getInstanceIndex": lambda: run["index"],
            "getNumTotalReplicas": lambda: run["replicas"],
            "getNumLocalReplicas": lambda: run["replicas"] // run["instances"],
            "getNumIpusPerReplica": lambda: run["ipus_per_replica"],
        }

        def set_ipu_config(config, ipus_per_replica=None, configure_device=None):
            config.select_ipus = 0
            config.experimental.multi_replica_distribution.process_count = run["instances"]
            config.experimental.multi_replica_distribution.process_index = run["index"]

        entries = external(API["external"]["popdist"]["functions"])
        popdist = _Module("popdist", {n: self._callable(f"popdist.{n}", entries[n], f) for n, f in answers.items()})
        entries = external(API["external"]["popdist.tensorflow"]["functions"])
        inner = self._callable("popdist.tensorflow.set_ipu_config", entries["set_ipu_config"], set_ipu_config)
        popdist.names["tensorflow"] = _Module("popdist.tensorflow", {"set_ipu_config": inner})
        return {"popdist": popdist, "popdist.tensorflow": popdist.names["tensorflow"]}

    def install(self, monkeypatch):
        """Makes the double importable and extends models made under its strategies, until the test ends."""
        from ipu_double import models

        modules = self.modules()
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(importlib.import_module("tensorflow.python"), "ipu", modules[ROOT], raising=False)
        functional = type(keras.Sequential()).__mro__[1]
        original = functional.__init__

        def init(model, *arguments, **keywords):
            original(model, *arguments, **keywords)
            strategy = tf.distribute.get_strategy()
            if hasattr(strategy, "ipu_double") and not keywords.get("skip_init"):
                models.extend(model, strategy)

        monkeypatch.setattr(functional, "__init__", init)
        self._patch_reading(monkeypatch)
        return self

    def _patch_reading(self, monkeypatch):
        """Data sets of a strategy's scope feed the device alone; a distributed variable is no Python number."""
        dataset = next(kind for kind in type(tf.data.Dataset.range(1)).__mro__ if "__iter__" in vars(kind))
        iterate = self.iterate = getattr(dataset.__iter__, "original", dataset.__iter__)

        def iterator(data):
            if hasattr(tf.distribute.get_strategy(), "ipu_double") and tf.executing_eagerly():
                raise RuntimeError(
                    "Accessing dataset elements can not be accessed in eager mode when inside IPUStrategy"
                )
            return iterate(data)

        iterator.original = iterate
        monkeypatch.setattr(dataset, "__iter__", iterator)
        variable = next(kind for kind in type(tf.Variable(0)).__mro__ if "__float__" in vars(kind))
        for name in ("__float__", "__int__"):
            monkeypatch.setattr(variable, name, _number(getattr(variable, name)))


def _number(convert):
    def number(variable):
        if getattr(variable, "ipu_distributed", False):
            raise TypeError("float() argument must be a string or a number, not 'IPUMirroredVariable'")
        return convert(variable)

    return number


class _Scope:
    """A strategy's scope that marks the variables made in it, where they are `distributed`."""

    def __init__(self, scope, distributed):
        self._stack, self._scope, self._distributed = contextlib.ExitStack(), scope, distributed

    def __enter__(self):
        strategy = self._stack.enter_context(self._scope)
        if self._distributed:
            self._stack.enter_context(tf.variable_creator_scope(self._create))
        return strategy

    @staticmethod
    def _create(creator, **keywords):
        variable = creator(**keywords)
        variable.ipu_distributed = True
        return variable

    def __exit__(self, *error):
        return self._stack.__exit__(*error)


def _parse(cls, value):
    if isinstance(value, cls):
        return value
    if not isinstance(value, str) or value.upper() not in cls.__members__:
        raise ValueError(f"Cannot parse {value} as one of {cls.__name__}. Valid values are: {list(cls.__members__)}.")
    return cls[value.upper()]


class _Module(types.ModuleType):
    """A module with the given names and no others."""

    def __init__(self, name, names):
        super().__init__(name)
        self.names = names
        self.__path__ = []

    def __getattr__(self, name):
        if name.startswith("__") or name not in self.names:
            raise AttributeError(f"the SDK's module {self.__name__} has no {name!r}")
        return self.names[name]
