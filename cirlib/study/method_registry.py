"""The methods, one list for tables, figures, the search page and the comparisons; one's own are put into it."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cirlib.study.errors import ParameterError, own_code

ZERO_SHOT, PROMPTS, QFORMER, DPO = "zero-shot", "prompts", "Q-Former", "DPO"  # families
COMBINER, INVERSION, RERANKED, OWN = "Combiner", "textual inversion", "re-ranked", "your own"
Class = TypeVar("Class", bound=type)


@dataclass(frozen=True)
class Method:
    """One way to turn a reference and an edit into a ranking."""

    name: str  # in parameters and files
    label: str  # wherever it is read, with the colour
    colour: str | None  # None: one that is left
    family: str  # methods of one family are variants of each other; the best of each family is compared
    trained: bool  # on triplets or preferences
    made_by: Any = None  # of a method that runs where it is asked for: its class, or "module:class" in cirlib.training
    headline: bool = True  # among the few in metrics.json, which a terminal shows in one line
    module: str = ""  # that registered one's own: a file, or "__main__" of a notebook

    def make(self) -> Any:
        """A new object of its class."""
        if not isinstance(self.made_by, str):
            return self.made_by()
        module, name = self.made_by.split(":")
        return getattr(importlib.import_module(f"cirlib.training.{module}"), name)()


# Colours of Okabe and Ito's palette and Tol's wine: colour-blind readers tell them apart.
METHODS = {
    method.name: method
    for method in (
        Method("image_only", "image only", "#9A9A9A", ZERO_SHOT, False, headline=False),
        Method("text_only", "text only", "#56B4E9", ZERO_SHOT, False, headline=False),
        Method("sum", "weighted sum", "#0072B2", ZERO_SHOT, False),
        Method("sum_raw", "sum of raw features", "#661100", ZERO_SHOT, False, headline=False),
        Method("slerp", "slerp", "#882255", ZERO_SHOT, False, headline=False),
        Method("prompt_tuned", "prompt-tuned", "#332288", PROMPTS, True, "prompt_tuning:PromptTuned", headline=False),
        Method("sum_tuned", "sum, tuned tower", None, COMBINER, True, "combiner:TunedSum"),
        Method("combiner", "Combiner", None, COMBINER, True, "combiner:Combiner"),
        Method("combiner_tuned", "Combiner, tuned tower", None, COMBINER, True, "combiner:TunedCombiner"),
        Method("joint_sum", "gated sum", None, COMBINER, True, "joint_sum:JointSum"),
        Method("pic2word", "Pic2Word", None, INVERSION, False, "textual_inversion:Pic2Word"),
        Method("lincir", "LinCIR", None, INVERSION, False, "textual_inversion:LinCIR"),
        Method("phi", "published φ", None, INVERSION, False, "textual_inversion:PublishedInversion"),
        Method("reranked", "re-ranked by matching", None, RERANKED, True, "reranking:Reranked"),
        Method("qformer_pretrained", "Q-Former, pretrained only", "#DDCC77", QFORMER, False, headline=False),
        Method("qformer", "Q-Former", "#E69F00", QFORMER, True),
        Method("qformer_hard_negatives", "Q-Former + hard negatives", "#D55E00", QFORMER, True),
        Method("retrieval_dpo", "Retrieval-DPO", "#009E73", DPO, True),
        Method("retrieval_dpo_projection", "Retrieval-DPO, projection only", "#8FD8A0", DPO, True, headline=False),
    )
}


def register(name: str, label: str = "", *, trained: bool = False) -> Callable[[Class], Class]:
    """Puts a class of one's own among the methods, as ``@register("mine", "my label")`` over it; again replaces it.

    The class is made without arguments. ``fit(prepared)``, where there is one, is called first, with the study's data
    and models; then ``embed_queries(images, texts)`` and ``embed_targets(images)`` as in
    :mod:`cirlib.retrieval.method_scoring`.
    ``trained``: on the study's triplets. A ParameterError where the name is taken, be it by another file, or the class
    lacks a function.

    >>> @register("mine", "my method")
    ... class Mine:
    ...     def embed_queries(self, images, texts):
    ...         return images.embeddings
    ...     def embed_targets(self, images):
    ...         return images.embeddings
    >>> METHODS.pop("mine").label
    'my method'
    """
    module = sys._getframe(1).f_globals["__name__"]
    if not isinstance(name, str) or not name.isidentifier() or (name in METHODS and METHODS[name].family != OWN):
        raise ParameterError(f"a method cannot be named {name!r}: letters, digits, _, and none of {', '.join(METHODS)}")
    if name in METHODS and METHODS[name].module != module:
        raise ParameterError(f"{METHODS[name].module} registers a method {name!r} too: rename one of the two")

    def add(made_by: Class) -> Class:
        if lacking := [needed for needed in ("embed_queries", "embed_targets") if not hasattr(made_by, needed)]:
            raise ParameterError(f"method {name!r} has no {lacking[0]}: it needs embed_queries and embed_targets")
        METHODS[name] = Method(name, label or name.replace("_", " "), None, OWN, trained, made_by, module=module)
        return made_by

    return add


def requested_methods(names: Sequence[str], root: Path) -> list[Method]:
    """The methods that run beside a stage's own: those named, those of the files named, those of the running notebook.

    Files are given from ``root``. A ParameterError where there is no such method or file, or the file registers none.

    >>> [method.name for method in requested_methods(["prompt_tuned"], folder)]
    ['prompt_tuned']
    """
    found: dict[str, Method] = {}
    if twice := [name for name in names if names.count(name) > 1]:
        raise ParameterError(f"methods: {twice[0]!r} is named twice: zero_shot.methods and qformer.methods share none")
    for name in names:
        own = _of_file(root / name) if name.endswith(".py") else [METHODS[name]] if name in METHODS else []
        if not own or own[0].made_by is None:
            allowed = ", ".join(method.name for method in METHODS.values() if method.made_by is not None)
            raise ParameterError(f"methods: {name!r} cannot be added. Allowed: {allowed}, or a Python file (.py)")
        found |= {method.name: method for method in own}
    return list((found | {method.name: method for method in _of_module("__main__")}).values())


def find_method(name: str) -> Method:
    """A method by its name in tables; one that is not in the list is somebody's own, under its name in words.

    >>> find_method("sum").family, find_method("my_method").family
    ('zero-shot', 'your own')
    """
    return METHODS[name] if name in METHODS else Method(name, name.replace("_", " "), None, OWN, False)


def method_label(name: str) -> str:
    """A method's name in sentences, tables and figures.

    >>> method_label("sum"), method_label("my_method")
    ('weighted sum', 'my method')
    """
    return find_method(name).label


def labels() -> dict[str, str]:
    """Name → label of every method in the list, to rename in a table.

    >>> labels()["sum"]
    'weighted sum'
    """
    return {method.name: method.label for method in METHODS.values()}


def _of_file(file: Path) -> list[Method]:
    """What running a Python file registers."""
    if not file.is_file():
        raise ParameterError(f"methods: there is no file {file}")
    for before in _of_module(str(file)):
        del METHODS[before.name]
    spec = importlib.util.spec_from_file_location(str(file), file)
    module = sys.modules[str(file)] = importlib.util.module_from_spec(spec)
    with own_code(f"methods: {file.name}"):
        spec.loader.exec_module(module)
    if not (found := _of_module(str(file))):
        raise ParameterError(f'methods: {file.name} registers no method: put @register("its_name") over a class')
    return found


def _of_module(module: str) -> list[Method]:
    return [method for method in METHODS.values() if method.module == module]
