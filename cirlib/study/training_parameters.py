"""The parameters of what is trained: the Q-Former with the methods beside it, and preferences with their grid."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cirlib.study.parameter_types import Block, Count, NonNegativeCount, Positive, Whole, refuse


class QFormer(Block):
    fusion: Literal["one_pass", "covr", "two_pass"] = "one_pass"
    target: Literal["max", "mean"] = "max"
    sprc_terms: Annotated[float, Field(ge=0)] = 0.0  # weight of SPRC's relation and alignment terms beside InfoNCE
    num_query_tokens: Annotated[Whole, Field(ge=1, le=256)] = 8
    width: Count = 256
    layers: Annotated[Whole, Field(ge=1, le=6)] = 6  # of mini, MiniLM's last; those before them read the text, frozen
    pretraining_epochs: NonNegativeCount = 2
    pretraining_lr: Positive = 2e-4
    epochs: NonNegativeCount = 4
    lr: Positive = 2e-4
    temperature_lr: Positive | None = None  # of the learned temperature itself, not its logarithm; None: lr
    recipe: Literal["own", "sprc"] = "own"  # of the optimiser
    whole_train: bool = False  # also on what is held out for choices; then the last epoch counts
    batch_size: Annotated[Whole, Field(ge=2)] = 64
    accumulation: Count = 1
    edits: Count | None = None  # train edits that an epoch reads, drawn anew each time; None: all
    retrain: bool = False  # trains anew what was trained before with the same parameters
    single_captions: Annotated[float, Field(ge=0, le=1)] = 0.5  # chance that a text is one caption, not both
    processes: Count | None = None  # that train together; None: one a GPU, without GPUs one
    chunk_size: Count | None = None  # gradient caching: images whose activations are kept at a time
    gradient_checkpointing: bool = False  # less memory for more time
    hard_negatives: NonNegativeCount = 2  # mined images a query; 0: no training with mined images
    sampling: Literal["band", "margin"] = "band"
    range_max: Count = 50  # of band
    mine_from: NonNegativeCount = 2  # epochs of plain in-batch training first
    methods: list[str] = Field(["prompt_tuned"])  # beside the Q-Former: names, or Python files that register some
    method_epochs: Count = 4  # of all but prompt_tuned
    combiner_lr: Positive = 1e-3
    text_lr: Positive = 1e-4  # of a text tower
    phi_lr: Positive = 1e-3  # of textual inversion
    phi: Path | None = None  # a published φ of Pic2Word, SEARLE or LinCIR, for the method "phi"
    rerank: str = "sum"  # the method whose first fifty "reranked" puts in order
    prompt_vectors: Annotated[Whole, Field(ge=1, le=32)] = 4  # learned before the edit, in the two-tower model
    prompt_epochs: Count = 1
    prompt_edits: Count | None = 1_000  # train edits that an epoch reads; None: all
    prompt_lr: Positive = 0.01

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        short = self.sampling == "band" and self.range_max < self.hard_negatives
        refuse(short, f"range_max ({self.range_max}) must be at least hard_negatives ({self.hard_negatives})")
        return self


class DPO(Block):
    """A preference training, our reading of the paper's Retrieval-DPO unless told otherwise, and the grid around it.

    The paper's abstract and introduction give the two towers, mined negatives and a DPO loss that trains the text side;
    every number here is ours.
    """

    fusion: Literal["text_only", "sum", "qformer"] = "text_only"
    start: Literal["pretrained", "finetuned"] = "pretrained"  # of the Q-Former
    objective: Literal["dpo", "info_nce_mined", "info_nce_in_batch", "recall_in_batch"] = "dpo"
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    trains: Literal["query_projection", "query_tower", "both_projections", "both_towers"] = "query_tower"
    layers: Annotated[Whole, Field(ge=1, le=6)] = 6  # of mini's text tower that learn, its last
    beta: Positive = 0.1  # times 100, CLIP's logit scale: the slope of every objective
    epochs: Count = 1
    edits: Count | None = None  # train edits used, an even share a category; None: all
    retrain: bool = False  # trains anew what was trained before with the same parameters
    lr: Positive = 1e-4  # of towers; projections have one of their own
    batch_size: Annotated[Whole, Field(ge=2)] = 64
    num_negatives: Count = 5
    index: Literal["flat", "ivf", "hnsw"] = "flat"
    nlist: Count | None = None  # lists of ivf; None: by the size of the gallery
    nprobe: Count | None = None  # lists that ivf searches
    sampling: Literal["top", "band", "random", "margin"] = "top"
    range_min: NonNegativeCount = 0  # of top and band
    range_max: Count = 100
    mine_every: NonNegativeCount = 0  # epochs between two minings; 0: mined once
    repetition: NonNegativeCount = 0  # the same with other edits, batches and draws
    grid: Literal["none", "small", "full"] = "small"
    grid_edits: Count = 256  # of the grid's runs

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        wanted, depth = f"range_min + num_negatives ({self.range_min} + {self.num_negatives})", self.range_max
        refuse(depth < self.range_min + self.num_negatives, f"range_max ({depth}) must be at least {wanted}")
        for_ivf, lists, probes = self.index == "ivf", self.nlist or 0, self.nprobe or 0
        refuse(not for_ivf and lists + probes > 0, f"nlist and nprobe go with index ivf only, given {self.index}")
        refuse(0 < lists < probes, f"nprobe ({probes}) must be at most nlist ({lists})")
        after_training = self.start == "finetuned" and self.fusion != "qformer"
        refuse(after_training, f"start finetuned goes with fusion qformer only, given {self.fusion}")
        return self
