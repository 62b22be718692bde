"""The evaluation protocols of public composed-image-retrieval code, as named objects.

Numbers from different protocols must not share a table without saying so: the gallery alone is worth
about 7 points of FashionIQ's R@10.
"""

from typing import NamedTuple

REFERENCES = ("kept", "removed")


class EvaluationProtocol(NamedTuple):
    """How a benchmark is scored."""

    gallery: str  # "original" (the split file) or "val_split" (only the queries' references and targets)
    reference: str  # "kept" in the gallery, or "removed" from each query's own ranking
    captions: str  # how a query's captions become text, see `join_captions`
    used_by: str  # the public code that scores so


# `pic2word` writes "cap2 and cap1" in one order only, and `magiclens` joins without stripping or
# capitals: the nearest style stands for each.
PROTOCOLS = {
    "clip4cir": EvaluationProtocol("original", "kept", "and", "CLIP4Cir, Bi-BLIP4CIR, SPRC"),
    "searle": EvaluationProtocol("original", "kept", "template", "SEARLE, LinCIR"),
    "pic2word": EvaluationProtocol("original", "kept", "template", "Pic2Word (which joins in one order only)"),
    "magiclens": EvaluationProtocol(
        "original", "kept", "and", "MagicLens, CIReVL (which neither strip nor capitalise)"
    ),
    "covr": EvaluationProtocol("original", "removed", "and", "CoVR, HABIT"),
    "val_split": EvaluationProtocol("val_split", "kept", "and", "older FashionIQ papers"),
    "first_caption": EvaluationProtocol("original", "kept", "first", "no paper: what one caption is worth"),
    "cirr": EvaluationProtocol("original", "removed", "raw", "CIRR's test server"),
    "circo": EvaluationProtocol("original", "kept", "raw", "CIRCO's test server"),
}
