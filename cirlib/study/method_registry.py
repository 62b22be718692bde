"""The methods of the study: one list for tables, figures, the search page and the comparisons."""

from dataclasses import dataclass

ZERO_SHOT, PROMPTS, QFORMER, DPO = "zero-shot", "prompts", "Q-Former", "DPO"  # families


@dataclass(frozen=True)
class Method:
    """One way to turn a reference and an edit into a ranking."""

    name: str  # in tables and files
    label: str  # in figures, with the colour
    colour: str
    family: str  # methods of one family are variants of each other; the best of each family is compared
    stage: str  # that scores it
    trained: bool  # on triplets or preferences


# Colours of Okabe and Ito's palette and Tol's wine: colour-blind readers tell them apart.
METHODS = {
    method.name: method
    for method in (
        Method("image_only", "image only", "#9A9A9A", ZERO_SHOT, "zero_shot", False),
        Method("text_only", "text only", "#56B4E9", ZERO_SHOT, "zero_shot", False),
        Method("sum", "weighted sum", "#0072B2", ZERO_SHOT, "zero_shot", False),
        Method("slerp", "slerp", "#882255", ZERO_SHOT, "zero_shot", False),
        Method("prompt_tuned", "prompt-tuned", "#332288", PROMPTS, "qformer", True),
        Method("qformer_pretrained", "Q-Former, pretrained only", "#DDCC77", QFORMER, "qformer", False),
        Method("qformer", "Q-Former", "#E69F00", QFORMER, "qformer", True),
        Method("qformer_hard_negatives", "Q-Former + hard negatives", "#D55E00", QFORMER, "qformer", True),
        Method("retrieval_dpo", "Retrieval-DPO", "#009E73", DPO, "dpo", True),
        Method("retrieval_dpo_projection", "Retrieval-DPO, projection only", "#8FD8A0", DPO, "dpo", True),
    )
}


def method_label(name: str) -> str:
    """A method's name in figures; of one that the study does not know, its own name in words.

    >>> method_label("sum"), method_label("my_method")
    ('weighted sum', 'my method')
    """
    return METHODS[name].label if name in METHODS else name.replace("_", " ")
